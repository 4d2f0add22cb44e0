"""For Ollama: the .gguf file and a Modelfile with the trained template and its stop words.

Ollama does not run Jinja. The template is said again in its own language, turn by turn, with what stands before and
behind each role's text. The result is rendered here for several conversations and compared with the trained template:
where they differ, the template is none of turns, and nothing is written.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from lrft.data.prompts import Asking
from lrft.errors import UsageError
from lrft.export.gguf import FILE, Gguf
from lrft.model.load import load_tokenizer
from lrft.utils import files

Turns = list[dict[str, str]]
FIRST, SECOND, THIRD = "«first»", "«second»", "«third»"
ROLES = (("user", FIRST), ("assistant", SECOND), ("user", THIRD))


@dataclass(frozen=True)
class Ollama(Gguf):
    """model.gguf as by --to gguf, and a Modelfile with the trained template: `ollama create NAME -f Modelfile`."""

    name: ClassVar[str] = "ollama"
    needs: ClassVar[str] = "gguf"

    dtype: Literal["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_k_s", "q3_k_m"] = "f16"
    """As of gguf."""
    converter: str | None = None
    """As of gguf."""

    def complete(self, merged: Path, out: Path) -> None:
        tokenizer = load_tokenizer(merged)
        if not tokenizer.chat_template:
            raise UsageError("this model has no chat template, which Ollama needs", "Use --to gguf instead.")
        files.write_text(out / "Modelfile", modelfile(tokenizer))


@dataclass(frozen=True)
class Around:
    """What a template writes before and behind the text of each role, and where an answer begins."""

    roles: Mapping[str, tuple[str, str]]
    opening: str
    """before the answer to be written"""
    system: str = ""
    """the system turn's text where a conversation has none"""

    def render(self, turns: Sequence[Mapping[str, str]]) -> str:
        """The text of a prompt, as Ollama puts it together."""
        given = [*turns]
        if self.system and given[0]["role"] != "system":
            given.insert(0, {"role": "system", "content": self.system})
        written = (self.roles[turn["role"]][0] + turn["content"] + self.roles[turn["role"]][1] for turn in given)
        return "".join(written) + self.opening

    def go(self) -> str:
        """The same in Ollama's language, which is Go's text/template."""
        cases = [
            f'{{{{ {"if" if n == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
            for n, (role, (before, behind)) in enumerate(self.roles.items())
        ]
        return "{{ range .Messages }}" + "".join(cases) + "{{ end }}{{ end }}" + self.opening


def modelfile(tokenizer: Any) -> str:
    """Raises UsageError for a template that is none of turns."""
    around = taken_apart(tokenizer)
    quoted = around.go().replace('"""', '\\"\\"\\"')
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{quoted}"""']
    if around.system:
        lines.append(f'SYSTEM """{around.system}"""')
    lines += [f'PARAMETER stop "{escaped(word)}"' for word in stop_words(tokenizer, around)]
    return "\n".join(lines) + "\n"


def escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def stop_words(tokenizer: Any, around: Around) -> list[str]:
    """The end token, and what opens a turn where that is a token of its own."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    openings = [before.strip().split("\n")[0] for before, _ in around.roles.values()]
    heads = [token for opening in openings for token in added if token and opening.startswith(token)]
    behind = around.roles["assistant"][1].strip()
    return list(dict.fromkeys([word for word in (behind, str(tokenizer.eos_token), *heads) if word in added]))


def taken_apart(tokenizer: Any) -> Around:
    """What the template writes around each role's text. Raises UsageError when that does not say it all."""
    from jinja2.exceptions import TemplateError

    try:
        around = read_apart(tokenizer)
        probes = conversations("system" in around.roles)
        if all(around.render(turns) == rendered(tokenizer, turns) for turns in probes):
            return around
    except (TemplateError, ValueError):
        pass
    raise UsageError(
        "this chat template does more than write turns one after the other, which is all that Ollama's language says",
        "Use --to gguf: llama.cpp runs the trained template itself, with --jinja.",
    )


def rendered(tokenizer: Any, turns: Turns) -> str:
    """The prompt that the template makes of a conversation, without the first token where the tokenizer adds it:
    Ollama does the same."""
    text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    adds = tokenizer.bos_token and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(str(tokenizer.bos_token)) if adds else text


def read_apart(tokenizer: Any) -> Around:
    """What stands around texts that no template writes. Raises ValueError, or the template's own error."""
    from jinja2.exceptions import TemplateError

    user, answer, again = ({"role": role, "content": mark} for role, mark in ROLES)
    head, tail = rendered(tokenizer, [user]).split(FIRST)
    _, _, rest = rendered(tokenizer, [user, answer, again]).partition(SECOND)
    between = rest[: rest.index(THIRD)]
    end = next(iter(Asking(tokenizer).ends), None)
    if end is None or end not in between:
        raise ValueError("no token ends an answer")
    stop = between.index(end) + len(end)
    stop += len(between[stop:]) - len(between[stop:].lstrip())
    before, behind = between[stop:], between[:stop]
    if not head.endswith(before):
        raise ValueError("a user's first turn begins differently")
    behind_user = shared_start(tail, behind)
    opening = tail.removeprefix(behind_user)
    roles = {"user": (before, behind_user), "assistant": (opening, behind)}
    default = head.removesuffix(before)
    try:
        prefix, rest = rendered(tokenizer, [{"role": "system", "content": SECOND}, user]).split(SECOND)
        suffix = rest[: rest.index(FIRST)].removesuffix(before)
    except TemplateError:  # it has no system turns
        return Around(roles, opening, default)
    named = default.removeprefix(prefix).removesuffix(suffix) if default else ""
    return Around({"system": (prefix, suffix), **roles}, opening, named)


def shared_start(a: str, b: str) -> str:
    """The longest text that both begin with."""
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))
    return "".join(letter for letter, _ in pairs)


def conversations(system: bool) -> list[Turns]:
    """Conversations of one to three questions, with and without a system turn."""
    found: list[Turns] = []
    for n, first in itertools.product((1, 2, 3), (False, True) if system else (False,)):
        turns = [{"role": "system", "content": "Be brief."}] if first else []
        for k in range(n):
            turns.append({"role": "user", "content": f"Question {k}?"})
            if k < n - 1:
                turns.append({"role": "assistant", "content": f"<think>Why?</think>\n\nAnswer {k}."})
        found.append(turns)
    return found

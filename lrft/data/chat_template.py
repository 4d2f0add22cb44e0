"""From a sample to pieces of text, each known to be trained or not.

Conversations are rendered by the chat template that the model will be used with. Nothing is searched for in
the result; an answer's span is a difference of renderings:

    head = render(messages[:i], add_generation_prompt=True)    what generation starts from
    end  = render(messages[:i + 1])                            the same and the answer
    full = render(messages)

`head` must be a prefix of `end`, and `end` of `full`; the answer's span is what `end` has beyond `head`. A
template that writes earlier turns otherwise than last ones breaks this, and is refused with the sample.
Of the span, everything up to the end-of-turn token is trained, the white space after that token is not.
Where the template writes no such token, the row ends after its last answer with the tokenizer's eos, trained.

Before a first turn that is an answer, and where a template has no generation prompt, what the template writes before
an answer is what its renderings of two different answers share. In the second case generation writes it itself, so it
is trained with the answer.

Special tokens typed by a person are data, unless the recipe says that they stand for the tokens. Where a sample holds
the text of one, it is put between two marks (characters that the sample does not hold) before rendering; what then
stands between marks is tokenised as plain text. The rendering without its marks must equal the rendering of the
unmarked sample, so a template that takes such text apart is noticed. All else goes through the tokenizer exactly as in
generation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lrft.data.records import BadRow
from lrft.data.report import NO_TOKEN
from lrft.data.sample import Sample
from lrft.data.tools import CALLS, Tool, changed, texts_in, with_text_arguments
from lrft.data.turns import Message
from lrft.errors import DataError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""What templates call the thoughts of a turn; transformers gives them under the first two"""
Spelling = Callable[[Message], Message]
# Ways to spell calls, the usual one first: some templates need a content, and some join arguments to text.
SPELLINGS: tuple[Spelling, ...] = (
    lambda message: message,
    lambda message: {"content": "", **message},
    with_text_arguments,
    lambda message: {"content": "", **with_text_arguments(message)},
)
_ASKED: Message = {"role": "user", "content": "x"}
_CALLED = ("probed_tool", "probed_key")
_FUNCTION = {"name": _CALLED[0], "arguments": {_CALLED[1]: "y"}}
_CALLING: Message = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "id": "call00000", "function": _FUNCTION}],
}
_PARAMETERS = {"type": "object", "properties": {}}
_DEFINED = ({"type": "function", "function": {"name": "other", "description": "x", "parameters": _PARAMETERS}},)

_GIVEN = ("messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now", "namespace", "dict", "range")

# Noncharacters of Unicode: legal in strings, never meant for exchange.
_MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]


class Piece(NamedTuple):
    """A stretch of text. plain: tokenised without recognising special tokens."""

    text: str
    trained: bool
    plain: bool = False


class Span(NamedTuple):
    """A trained answer: pieces[first:last], and its reference text."""

    first: int
    last: int
    answer: str


@dataclass(frozen=True)
class Rendered:
    """A sample as text.

    spans: at least one. add_eos: the eos token follows the last piece and belongs to the last span.
    end: the token that closes the last span, "" when none does. altered: the template left out or rewrote the
    content of some turn. templated: a chat template wrote it, with all special tokens that belong there.
    """

    pieces: tuple[Piece, ...]
    spans: tuple[Span, ...]
    add_eos: bool
    end: str
    altered: bool = False
    templated: bool = False

    @property
    def marked(self) -> bool:
        """The sample holds the text of a special token."""
        return any(piece.plain for piece in self.pieces)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class Renderer:
    """Turns samples into pieces.

    template: the jinja text, or None for a tokenizer without one. train_on, options (data.template_options): as in the
    recipe.
    """

    def __init__(
        self, tokenizer: Any, template: str | None, train_on: str, options: Mapping[str, Any] | None = None
    ) -> None:
        self._tokenizer, self._template, self._train_on = tokenizer, template, train_on
        self._options = dict(options or {})
        added = tokenizer.added_tokens_decoder.values()
        self._endings = tuple(token.content for token in added if token.content)
        self._closing = _any_of(self._endings)
        special = {token.content for token in added if token.special}
        self._special = _any_of(special | {str(t) for t in tokenizer.all_special_tokens} - {""})
        self._eos = str(tokenizer.eos_token)
        self._tools = template is not None and "tool" in template
        self._developers = template is not None and "developer" in template

    def __call__(self, sample: Sample) -> Rendered:
        """Raises BadRow when the template refuses the sample, DataError when spans cannot be told."""
        if sample.messages:
            return self._chat(sample)
        if sample.document is not None:
            return self._join([(sample.document, True)], sample.tokens)
        return self._join([(sample.prompt, self._train_on == "all"), (sample.answer, True)], sample.tokens)

    def special_in(self, sample: Sample) -> list[str]:
        """The special tokens whose text a sample holds, each once."""
        texts = [text for each in sample.sequences for text in each.texts]
        return list(dict.fromkeys(token for text in texts for token in self._special.findall(text)))

    @cached_property
    def opening(self) -> str:
        """What the template writes before an answer although no generation prompt has it; "" for none."""
        if self._template is None or "add_generation_prompt" in self._template:
            return ""
        asked: list[Message] = [{"role": "user", "content": "x"}]
        try:
            written = self._before_answer(asked)[len(self._render(asked, prompt=True)) :]
        except BadRow:  # it refuses the probe, not every row
            return ""
        return written if written.strip() else ""

    def _before_answer(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """What stands before an answer that follows `messages`, as the template writes it. Raises BadRow."""
        one, two = (self._render([*messages, {"role": "assistant", "content": text}], tools) for text in ("A", "B"))
        return one[: _agree(one, two)]

    @cached_property
    def _calls(self) -> Spelling | None:
        """How this template wants calls to be spelt; None when it writes none."""
        for spelling in SPELLINGS:
            try:
                written = self._written([_ASKED, spelling(_CALLING)], _DEFINED, prompt=False)
            except BadRow:
                continue
            # Python's own quotes are those of a map that was joined to text as it is.
            if all(word in written for word in _CALLED) and f"'{_CALLED[1]}'" not in written:
                return spelling
        return None

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[Piece, ...]:
        """The pieces that generation of the next answer starts from. Raises BadRow.

        Earlier answers are cut out as in training, so that the ids are those of a trained row.
        """
        messages = self._known_roles(messages)
        turns, known, marks = self._mark(messages, tools)
        full = self._render(turns, known, prompt=True)
        self._without_marks(full, marks, messages, tools, prompt=True)
        full += self.opening
        answers = [i for i, m in enumerate(turns[:-1]) if m["role"] == "assistant"]
        try:
            bounds = [self._bounds(turns, known, i, full) for i in answers]
        except DataError:
            # The template rewrites earlier answers: training was with last-assistant, which cuts none of them.
            bounds = []
        pieces, _ = _cut(full, bounds, marks, self.opening)
        return tuple(pieces)

    def _known_roles(self, messages: Sequence[Message]) -> Sequence[Message]:
        """A developer's turn is a system turn for templates that know no developer."""
        if self._developers:
            return messages
        return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]

    def _join(self, parts: Sequence[tuple[str, bool]], tokens: bool) -> Rendered:
        """Pieces without a template from (text, trained) parts, the last being the answer; eos follows.

        tokens: the text of special tokens stands for them, and where one ends the last part no eos follows.
        """
        pieces: list[Piece] = []
        if tokens:
            return self._as_written(parts)
        for text, trained in parts:
            first, at = len(pieces), 0
            for found in self._special.finditer(text):
                pieces += [Piece(text[at : found.start()], trained)] if found.start() > at else []
                pieces.append(Piece(found[0], trained, plain=True))
                at = found.end()
            pieces += [Piece(text[at:], trained)] if at < len(text) else []
        return Rendered(tuple(pieces), (Span(first, len(pieces), parts[-1][0]),), add_eos=True, end=self._eos)

    def _as_written(self, parts: Sequence[tuple[str, bool]]) -> Rendered:
        """Pieces of texts that hold their special tokens; white space after the last of them is not trained."""
        answer = parts[-1][0]
        end = self._last_token(answer.rstrip())
        stop = len(answer.rstrip()) if end else len(answer)
        texts = [*parts[:-1], (answer[:stop], True), (answer[stop:], False)]
        pieces = [Piece(text, trained) for text, trained in texts if text]
        first = sum(bool(text) for text, _ in parts[:-1])
        return Rendered(tuple(pieces), (Span(first, first + 1, answer[:stop]),), add_eos=not end, end=end or self._eos)

    def _chat(self, sample: Sample) -> Rendered:
        messages, tools = self._known_roles(sample.messages), sample.tools
        self._refuse_unwritten(messages)
        turns, known, marks = (messages, tools, None) if sample.tokens else self._mark(messages, tools)
        full = self._render(turns, known)
        clean = self._without_marks(full, marks, messages, tools)
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i not in sample.untrained]
        if not answers:
            raise BadRow(NO_TOKEN, "no trained tokens: no answer has weight 1")
        chosen = answers[-1:] if self._train_on == "last-assistant" else answers
        bounds = [self._bounds(turns, known, i, full) for i in chosen]
        # No end-of-turn token: the row stops at the answer's last character and eos comes right there.
        start, stop = bounds[-1]
        end = self._closes(full[start:stop], _content(turns[chosen[-1]]))
        add_eos = not end and chosen[-1] == len(turns) - 1
        pieces, places = _cut(full[:stop] if add_eos else full, bounds, marks, self.opening)
        if self._train_on == "all":
            pieces = [piece._replace(trained=True) for piece in pieces]
        references = [
            self._reference(messages[i], pieces[slice(*place)]) for i, place in zip(chosen, places, strict=True)
        ]
        spans = [Span(*place, text) for place, text in zip(places, references, strict=True)]
        altered = any(not _holds(clean, m) for m in messages)
        return Rendered(tuple(pieces), tuple(spans), add_eos, end or self._eos * add_eos, altered, templated=True)

    def _refuse_unwritten(self, messages: Sequence[Message]) -> None:
        """Raise BadRow for what the template has no words for: it would leave it out, and nobody would know."""
        if not self._tools and any(m["role"] == "tool" for m in messages):
            raise BadRow("unknown role", "the chat template has no tool turns")
        if any("tool_calls" in m for m in messages) and self._calls is None:
            raise BadRow(CALLS, "the chat template writes no tool calls")
        thoughts = any("reasoning_content" in m for m in messages)
        if thoughts and not any(name in (self._template or "") for name in REASONING):
            raise BadRow("reasoning", f"the chat template reads none of {', '.join(REASONING)}")

    def _reference(self, message: Message, pieces: Sequence[Piece]) -> str:
        """What a generated answer is compared with: the content, or calls as the template writes them."""
        if "tool_calls" not in message:
            return _content(message)
        return self._special.sub("", "".join(piece.text for piece in pieces)).strip()

    def _bounds(self, turns: Sequence[Message], tools: Sequence[Tool], i: int, full: str) -> tuple[int, int]:
        """Where the trained text of answer i starts and ends in `full`."""
        head = self._render(turns[:i], tools, prompt=True) if i else self._before_answer([], tools)
        end = full if i == len(turns) - 1 else self._render(turns[: i + 1], tools)
        if not end.startswith(head):
            raise _otherwise_prompted(i, head, end, last=i == len(turns) - 1)
        if not full.startswith(head):
            raise _unstable(i, "the turns before the answer", head, full)
        written = _content(turns[i])
        if not full.startswith(end):
            # Some templates close every conversation with one more end token, not there between turns.
            shorter = end[: end.rfind(self._last_token(end.rstrip()))]
            if not (full.startswith(shorter) and self._closes(shorter[len(head) :].rstrip(), written)):
                raise _unstable(i, "the answer", end, full)
            end = shorter
        body = end[len(head) :].rstrip()
        if not self._closes(body, written):
            # White space at the end of the answer is the answer's; what the template adds is not.
            own = written[len(written.rstrip()) :]
            if own and end[len(head) + len(body) :].startswith(own):
                body += own
        return len(head), len(head) + len(body)

    def _closes(self, body: str, answer: str) -> str:
        """The added token that the template wrote after `answer`, at the end of `body`; "" for none."""
        token, answer = self._last_token(body), answer.strip()
        # An added token that is no special one may be the end of the answer itself.
        own = token and answer.endswith(token) and not body[: -len(token)].rstrip().endswith(answer)
        return "" if own else token

    def _last_token(self, text: str) -> str:
        """The added token that `text` ends with; "" for none."""
        if not text.endswith(self._endings):
            return ""
        return next((m[0] for m in self._closing.finditer(text) if m.end() == len(text)), "")

    def _mark(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[Sequence[Message], Sequence[Tool], tuple[str, str] | None]:
        """The messages and tools with the text of special tokens between marks, and the marks (None: no such text)."""
        texts = texts_in((messages, tools))
        if not any(self._special.search(text) for text in texts):
            return messages, tools, None
        opening, closing = _free_marks(texts)

        def marked(text: str) -> str:
            return self._special.sub(lambda found: f"{opening}{found[0]}{closing}", text)

        return changed(list(messages), marked), changed(list(tools), marked), (opening, closing)

    def _without_marks(
        self,
        full: str,
        marks: tuple[str, str] | None,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        prompt: bool = False,
    ) -> str:
        """`full` without its marks. Raises BadRow when they are not around whole tokens, or changed the text."""
        if marks is None:
            return full
        opening, closing = marks
        clean = re.sub(f"{opening}({self._special.pattern}){closing}", r"\1", full)
        if opening in clean or closing in clean or clean != self._render(messages, tools, prompt):
            raise BadRow("special token in the text", "the chat template splits its text")
        return clean

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), prompt: bool = False) -> str:
        spell = self._calls if any("tool_calls" in m for m in messages) else None
        return self._written([spell(m) for m in messages] if spell else messages, tools, prompt)

    def _written(self, messages: Sequence[Message], tools: Sequence[Tool], prompt: bool) -> str:
        """As stock transformers renders it. Raises BadRow."""
        from jinja2.exceptions import TemplateError

        try:
            return self._tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=prompt,
                **self._options,
            )
        except (
            TemplateError,
            TypeError,
            ValueError,
            KeyError,
            AttributeError,
        ) as error:  # a template joins what it gets
            raise BadRow("rejected by the chat template", f"the chat template rejects it: {error}") from error


def template_names(template: str) -> set[str]:
    """The values that a chat template reads beside the conversation, its tools and the tokenizer's tokens."""
    from jinja2 import Environment, meta

    # A tag of transformers, which says nothing of values.
    plain = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
    found = meta.find_undeclared_variables(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain))
    return {name for name in found if name not in _GIVEN and not name.endswith("_token")}


def writes_tools(template: str) -> bool:
    return "tools" in template


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted({t for t in texts if t}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _free_marks(texts: Sequence[str]) -> tuple[str, str]:
    free = [mark for mark in _MARKS if not any(mark in text for text in texts)]
    if len(free) < 2:
        raise BadRow("special token in the text", "and every character that could set it apart as well")
    return free[0], free[1]


def _agree(a: str, b: str) -> int:
    """How many first characters two texts share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _content(message: Message) -> str:
    """ "" for a turn of calls alone."""
    return str(message.get("content") or "")


def _holds(written: str, message: Message) -> bool:
    """Whether the template wrote all that a turn says, where it says it as it is or within JSON."""
    calls = message.get("tool_calls", ())
    texts = [_content(message), message.get("reasoning_content", ""), *(call["function"]["name"] for call in calls)]
    stripped = [text.strip() for text in texts if text]
    return all(text in written or json.dumps(text, ensure_ascii=False)[1:-1] in written for text in stripped)


def _unstable(i: int, what: str, alone: str, whole: str) -> DataError:
    at = _agree(alone, whole)
    return DataError(
        f"the chat template writes {what} (turn {i + 1}) differently once more turns follow: "
        f"{alone[at : at + 40]!r} became {whole[at : at + 40]!r}",
        "Set data.train_on: last-assistant, or set another data.chat_template.",
    )


def _otherwise_prompted(i: int, prompt: str, written: str, last: bool) -> DataError:
    at = _agree(prompt, written)
    return DataError(
        f"generation of turn {i + 1} starts from {prompt[at : at + 40]!r}, where the chat template writes "
        f"{written[at : at + 40]!r} for the answer itself: what is trained would not be what is generated",
        "Set data.template_options so that both agree, leave thoughts out of earlier turns, or set another "
        "data.chat_template."
        if last
        else "Set data.train_on: last-assistant, data.template_options, or another data.chat_template.",
    )


def _cut(
    text: str, bounds: Sequence[tuple[int, int]], marks: tuple[str, str] | None, opening: str
) -> tuple[list[Piece], list[tuple[int, int]]]:
    """The pieces of `text`, cut at the bounds of the trained stretches and at the marks (which disappear).

    Also, for each trained stretch, the numbers of its first piece behind the `opening` and of the piece after its last.
    """
    pieces: list[Piece] = []
    places = []
    at = 0
    for start, stop in bounds:
        pieces += [Piece(t, False, plain) for t, plain in _unmark(text[at:start], marks)]
        opened = start + len(opening) * text.startswith(opening, start)
        pieces += [Piece(t, True, plain) for t, plain in _unmark(text[start:opened], marks)]
        first = len(pieces)
        pieces += [Piece(t, True, plain) for t, plain in _unmark(text[opened:stop], marks)]
        places.append((first, len(pieces)))
        at = stop
    pieces += [Piece(t, False, plain) for t, plain in _unmark(text[at:], marks)]
    return pieces, places


def _unmark(text: str, marks: tuple[str, str] | None) -> list[tuple[str, bool]]:
    """(text, plain) for each stretch that is not empty."""
    if marks is None:
        return [(text, False)] if text else []
    parts = re.split(f"{marks[0]}(.*?){marks[1]}", text, flags=re.DOTALL)
    return [(part, k % 2 == 1) for k, part in enumerate(parts) if part]

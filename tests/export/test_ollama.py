"""The Modelfile: the trained template in Ollama's language, and its stop words."""

from __future__ import annotations

import re

import pytest
import tiny_tokenizers

from lrft.errors import UsageError
from lrft.export.ollama import modelfile


def spoken(template: str, system: str, turns: list[dict[str, str]]) -> str:
    """What Ollama makes of a template of this shape: a range over the messages, a chain of if and else if, a tail."""
    body, tail = re.fullmatch(r"{{ range .Messages }}(.*){{ end }}{{ end }}(.*)", template, re.S).groups()
    cases = dict(re.findall(r'{{ (?:else )?if eq .Role "(\w+)" }}(.*?)(?={{ else if|\Z)', body, re.S))
    given = turns if turns[0]["role"] == "system" or not system else [{"role": "system", "content": system}, *turns]
    return "".join(cases[turn["role"]].replace("{{ .Content }}", turn["content"]) for turn in given) + tail


CONVERSATIONS = [
    [("user", "hello")],
    [("system", "be short"), ("user", "hello")],
    [("user", "hello"), ("assistant", "forty two"), ("user", "again?")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]
DEFAULT = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("template", [tiny_tokenizers.CHATML, DEFAULT], ids=["chatml", "default system"])
def test_ollama_s_prompt_is_that_of_the_trained_template(template: str) -> None:
    tokenizer = tiny_tokenizers.chatml(template)
    written = modelfile(tokenizer)
    said = re.search(r'TEMPLATE """(.*?)"""', written, re.S)[1]
    system = re.search(r'SYSTEM """(.*?)"""', written, re.S)
    for talk in CONVERSATIONS:
        turns = [{"role": role, "content": text} for role, text in talk]
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert spoken(said, system[1] if system else "", turns) == expected
    assert re.findall(r'PARAMETER stop "(.*)"', written)[0] == "<|im_end|>"
    assert written.startswith("FROM ./model.gguf\n")


def test_a_template_that_is_not_made_of_turns_is_refused() -> None:
    with pytest.raises(UsageError, match="more than write turns"):
        modelfile(tiny_tokenizers.chatml(tiny_tokenizers.FORGETS))

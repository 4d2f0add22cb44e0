"""The Modelfile: the trained template in Ollama's language, and its stop words."""

from __future__ import annotations

import copy
import re
from typing import Any

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


REFUSED = {"llama2", "deepseek"}  # a system text inside the user's turn; a space that only a given answer has before it


def shaped(name: str) -> Any:
    """A tokenizer that puts BOS before any text, with one of the templates in use."""
    tokenizer = copy.deepcopy(tiny_tokenizers.of_kind("byte-level"))
    tokenizer.chat_template = {"default system": DEFAULT, "forgets": tiny_tokenizers.FORGETS, **tiny_tokenizers.SHAPES}[
        name
    ]
    return tokenizer


@pytest.mark.parametrize("name", ["default system", *sorted(tiny_tokenizers.SHAPES.keys() - REFUSED)])
def test_ollama_s_prompt_is_that_of_the_trained_template(name: str) -> None:
    tokenizer = shaped(name)
    written = modelfile(tokenizer)
    said = re.search(r'TEMPLATE """(.*?)"""', written, re.S)[1]
    system = re.search(r'SYSTEM """(.*?)"""', written, re.S)
    for talk in CONVERSATIONS:
        turns = [{"role": role, "content": text} for role, text in talk]
        expected = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert spoken(said, system[1] if system else "", turns) == expected.removeprefix("<s>")
    turns = [{"role": role, "content": text} for role, text in CONVERSATIONS[2]]
    behind = tokenizer.apply_chat_template(turns, tokenize=False).partition("forty two")[2]
    assert behind.startswith(re.findall(r'PARAMETER stop "(.*)"', written)[0])
    assert written.startswith("FROM ./model.gguf\n")


@pytest.mark.parametrize("name", sorted({"forgets", *REFUSED}))
def test_a_template_that_is_not_made_of_turns_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="more than write turns"):
        modelfile(shaped(name))

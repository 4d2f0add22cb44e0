"""Calls of tools in an answer's text, read as the chat template writes them.

How it writes them is asked of the template itself: the form that reads a call back from the template's own writing is
the one. An answer in another form stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from lrft.data.prompts import Asking
from lrft.data.records import BadRow
from lrft.data.sample import Sample

PROBE = {"name": "probed_tool", "arguments": {"probed_key": "y"}}
TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.S)
NAMED = re.compile(r"\s*([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]")


@dataclass(frozen=True)
class Call:
    """arguments: a JSON object"""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Form:
    """marker: what a call begins with. read: the calls in a text from its marker on; raises ValueError for what is
    none. first: only as the first thing of an answer. tokens: special tokens that belong to the text of a call."""

    marker: str
    read: Callable[[str], list[Call]]
    first: bool = False
    tokens: tuple[str, ...] = ()


def _call(found: Any, arguments: str) -> Call:
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        raise ValueError("no call")
    given = found.get(arguments)
    if not isinstance(given, dict):
        raise ValueError("no arguments")
    return Call(found["name"], given)


def tagged(text: str) -> list[Call]:
    """<tool_call>{"name": ..., "arguments": {...}}</tool_call>, any number of them: Hermes, Qwen."""
    if TAGGED.sub("", text).strip():
        raise ValueError("text behind a call")
    return [_call(json.loads(one), "arguments") for one in TAGGED.findall(text)]


def bare(text: str) -> list[Call]:
    """{"name": ..., "parameters": {...}} and nothing else: Llama 3.1."""
    return [_call(json.loads(text), "parameters")]


def bracketed(text: str) -> list[Call]:
    """[TOOL_CALLS] and a list of {"name": ..., "arguments": {...}}, or [TOOL_CALLS]NAME[ARGS]{...}: Mistral."""
    pieces = [piece for piece in text.split("[TOOL_CALLS]") if piece.strip()]
    return [call for piece in pieces for call in _piece(piece)]


def _piece(text: str) -> Iterator[Call]:
    if (named := NAMED.match(text)) is not None:
        yield _call({"name": named[1], "arguments": json.loads(text[named.end() :])}, "arguments")
        return
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("no list")
    yield from (_call(one, "arguments") for one in found)


FORMS = (
    Form("<tool_call>", tagged, tokens=("<tool_call>", "</tool_call>")),
    Form("[TOOL_CALLS]", bracketed, tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    Form("{", bare, first=True),
)


def form_of(asking: Asking) -> Form | None:
    """The form in which a template writes calls; None where it writes none, or in a form that is not known."""
    calling = {"role": "assistant", "tool_calls": [{"type": "function", "id": "probe0000", "function": PROBE}]}
    turns = ({"role": "user", "content": "x"}, calling)
    try:
        written = asking.rendered(Sample(messages=turns))
    except BadRow:
        return None
    wanted = [Call(PROBE["name"], PROBE["arguments"])]  # type: ignore[arg-type]
    for form in FORMS:
        try:
            if form.marker in written and form.read(written[written.index(form.marker) :]) == wanted:
                return form
        except ValueError:
            continue
    return None


class Reading:
    """The text of an answer on its way to a client: what is said, and the calls behind it.

    tools: the names that may be called; a call of another stays text.
    """

    def __init__(self, form: Form, tools: Collection[str]) -> None:
        self._form, self._tools = form, tools
        self._text, self._said = "", 0

    def add(self, text: str) -> str:
        """Take a stretch of the answer. Returns what can be said of it: nothing from where a call may begin."""
        self._text += text
        return self._upto(self._begin())

    def end(self) -> tuple[str, list[Call]]:
        """(what is left to be said, the calls)"""
        begin = self._text.find(self._form.marker)
        possible = begin >= 0 and not (self._form.first and self._text[:begin].strip())
        try:
            calls = self._form.read(self._text[begin:].strip()) if possible else []
        except (ValueError, RecursionError):
            calls = []
        if not calls or any(call.name not in self._tools for call in calls):
            return self._upto(len(self._text)), []
        return self._upto(max(len(self._text[:begin].rstrip()), self._said)), calls

    def _begin(self) -> int:
        """Where a call begins or may begin: the characters before it are text for certain, but for white space."""
        text, marker = self._text, self._form.marker
        if self._form.first:
            return 0 if not text.strip() or text.lstrip().startswith(marker) else len(text)
        if marker in text:
            end = text.index(marker)
        else:
            end = len(text) - max((n for n in range(1, len(marker)) if text.endswith(marker[:n])), default=0)
        return len(text[:end].rstrip())

    def _upto(self, end: int) -> str:
        new = self._text[self._said : max(end, self._said)]
        self._said += len(new)
        return new

"""A sample: what a record says, before any tokenizer. One text sequence, or several that belong together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lrft.data.records import BadRow
from lrft.data.tools import Tool, texts_in
from lrft.data.turns import Message, string

NO_TEMPLATE, TWO_SYSTEMS = "no chat template", "two system prompts"


@dataclass(frozen=True)
class Sample:
    """Exactly one of the three is given: `messages`, (`prompt`, `answer`), or `document`.

    tools: what the turns may call. untrained: the numbers of messages that are answers and are not trained. tokens: the
    text of special tokens stands for these tokens. beside: the other sequences of the row. label: of the row, to be
    counted; "" for none. numbers: what the row carries for its objective, by name; all rows of a format have the same
    names. weight: of the row's trained tokens in the loss. classes: labels by name, of a row whose prompt, and answer
    for a second text, are to be told apart; several: they were a list. spans: (first, last + 1) character of each word
    of the prompt, where each has one of the `classes`.
    """

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    answer: str = ""
    document: str | None = None
    tools: tuple[Tool, ...] = ()
    untrained: frozenset[int] = frozenset()
    tokens: bool = False
    beside: tuple[Sample, ...] = ()
    label: str = ""
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    weight: float = 1.0
    classes: tuple[str, ...] = ()
    several: bool = False
    spans: tuple[tuple[int, int], ...] = ()

    @property
    def sequences(self) -> tuple[Sample, ...]:
        """Itself, and what belongs to it."""
        return (self, *self.beside)

    @property
    def texts(self) -> list[str]:
        """The texts of this sequence."""
        return [*texts_in((self.messages, self.tools)), self.prompt, self.answer, self.document or ""]

    def with_tokens(self, tokens: bool) -> Sample:
        """All its sequences, with the text of special tokens standing for them or not."""
        if tokens == self.tokens and all(each.tokens == tokens for each in self.beside):
            return self
        return replace(self, tokens=tokens, beside=tuple(replace(each, tokens=tokens) for each in self.beside))

    def with_tools(self, tools: tuple[Tool, ...]) -> Sample:
        """All its sequences, with these tools."""
        return replace(self, tools=tools, beside=tuple(replace(each, tools=tools) for each in self.beside))

    def with_beside(self, *others: Sample) -> Sample:
        return replace(self, beside=others)

    def with_numbers(self, **numbers: tuple[float, ...]) -> Sample:
        return replace(self, numbers=numbers)

    def with_label(self, label: str, numbers: Mapping[str, tuple[float, ...]]) -> Sample:
        return replace(self, label=label, numbers=numbers)

    def digest(self) -> int:
        """First 8 bytes of the sha256 of the content, as an unsigned number."""
        content: list[Any] = [self.messages, self.prompt, self.answer, self.document]
        content += [sorted(self.untrained)] if self.untrained else []
        content += [self.tools] if self.tools else []
        content += [[each.digest() for each in self.beside]] if self.beside else []
        content += [self.label, dict(self.numbers)] if self.label or self.numbers else []
        content += [list(self.classes) if self.spans else sorted(self.classes)] if self.classes else []
        return int.from_bytes(hashlib.sha256(json.dumps(content).encode()).digest()[:8])


def is_filled(value: Any) -> bool:
    """Whether a column says anything in a row."""
    return value not in (None, "", [], {})


def system_turn(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system turn of the column of this name, where it is filled."""
    value = record.get("system")
    return ({"role": "system", "content": string(value, "system")},) if is_filled(value) else ()


def with_system(sample: Sample, system: tuple[Message, ...], field: str) -> Sample:
    """The conversation with this system turn before it. Raises BadRow where it has another one. field: its column."""
    messages = sample.messages
    if not system or messages[0] == system[0]:
        return sample
    if messages[0]["role"] in ("system", "developer"):
        raise BadRow(TWO_SYSTEMS, f"is not empty, and {field} begins with another system turn", "system")
    return replace(sample, messages=(*system, *messages), untrained=frozenset(i + 1 for i in sample.untrained))

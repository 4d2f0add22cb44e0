"""Raw records, each with its place, and what is wrong with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from lrft.utils.text import visible

HEAD = 80


class BadRow(Exception):
    """A record that cannot be used. `reason` is the class it is counted under, `detail` says it in full."""

    def __init__(self, reason: str, detail: str = "", field: str = "") -> None:
        super().__init__(detail or reason)
        self.reason, self.detail, self.field = reason, detail or reason, field


@dataclass(frozen=True)
class Record:
    """`number`: line of the file (.jsonl, .csv, .txt), else count of the record, from 1."""

    number: int
    value: dict[str, Any] | BadRow
    head: str


@dataclass(frozen=True)
class Source:
    """One file or hub data set. `name` ends in ":" (a line follows) or "#" (a record count follows)."""

    name: str
    kind: str
    digest: Callable[[], str]
    records: Callable[[], Iterator[Record]]

    @property
    def path(self) -> str:
        """The path as the user gave it."""
        return self.name[:-1]


def head(value: Any) -> str:
    """The start of a record, on one line and safe for a terminal."""
    text = value[: HEAD * 4].decode(errors="replace").strip() if isinstance(value, bytes) else str(value)
    return visible(text[:HEAD])


def as_object(value: Any) -> dict[str, Any] | BadRow:
    if isinstance(value, dict):
        return value
    return BadRow("not an object", f"a row must be an object with columns, this is {kind_of(value)}")


def of_table(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a file with columns, where every object of a column has the keys of all others, null if need be."""
    return {column: _without_filled(value) for column, value in row.items()}


def _without_filled(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_filled(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_filled(item) for key, item in value.items() if item is not None}
    return value


def listed(value: Any) -> Any:
    """The list that JSON text of one says, as files of flat columns hold lists; any other value as it is."""
    if not (isinstance(value, str) and value.lstrip().startswith("[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    words = {str: "text", bool: "true or false", type(None): "null", list: "a list", dict: "an object"}
    return words.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)

"""Prompts and completions put together from the columns of a table: `Facts: {facts}`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from string import Formatter
from typing import Any

from lrft.data.records import BadRow, kind_of


def columns_of(wording: str) -> list[str]:
    """The columns that a wording names, each once."""
    return list(dict.fromkeys(column for _, column in _parts(wording) if column is not None))


def fill(wording: str, record: Mapping[str, Any], field: str) -> str:
    """The text for one row. Raises BadRow for a column that is missing or is neither text nor a number.

    Values are put in as they are: braces in them mean nothing.
    """
    return "".join(
        literal + ("" if column is None else _value(record, column, field)) for literal, column in _parts(wording)
    )


@cache
def _parts(wording: str) -> tuple[tuple[str, str | None], ...]:
    """(text, the column behind it) from left to right."""
    return tuple((literal, column) for literal, column, _, _ in Formatter().parse(wording))


def _value(record: Mapping[str, Any], column: str, field: str) -> str:
    if column not in record:
        raise BadRow("missing key", f"no '{column}', which {field} names; there are {', '.join(record)}", column)
    value = record[column]
    if value is None:
        raise BadRow("null", "must be text or a number, this is null", column)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRow("wrong type", f"must be text or a number, this is {kind_of(value)}", column)
    return str(value)

"""From a raw record to a query, the document that belongs to it, and documents that do not.

pairs   {"anchor": text, "positive": text}, or what others call the two (`SIDES`); with "negative": text, "negatives" or
        "neg": a list of texts, and "negative_1", "negative_2", ... where rows have them. "pos" may be a list of one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lrft.data.records import BadRow
from lrft.data.sample import Sample, is_filled
from lrft.data.turns import filled

SIDES: tuple[tuple[str, ...], ...] = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("query", "pos"),
    ("question", "answer"),
    ("question", "positive"),
    ("question", "context"),
    ("sentence1", "sentence2"),
)
NEGATIVES = ("negative", "negatives", "neg")
EQUAL = "equal texts"


def pairs(record: Mapping[str, Any], chat: bool) -> Sample:
    """The query, and beside it the document and the negatives. Raises BadRow."""
    columns = next((each for each in SIDES if record.keys() >= set(each)), None)
    if columns is None:
        wanted = ", or ".join(map(" and ".join, SIDES))
        raise BadRow("missing key", f"expected {wanted}; there are {', '.join(record) or 'none'}", SIDES[0][1])
    query = filled(record[columns[0]], columns[0])
    document = one_of(record[columns[1]], columns[1])
    others = negatives(record)
    if query == document:
        raise BadRow(EQUAL, f"{columns[0]} and {columns[1]} are the same text: there is nothing to find", columns[1])
    for field, text in others:
        if text in (query, document):
            same = columns[0] if text == query else columns[1]
            raise BadRow(EQUAL, f"is the same text as {same}, so it is no negative", field)
    return Sample(prompt=query).with_beside(*(Sample(prompt=text) for text in (document, *(t for _, t in others))))


def one_of(value: Any, field: str) -> str:
    """A text, or the one text of a list. Raises BadRow."""
    if isinstance(value, list):
        if len(value) != 1:
            raise BadRow("several positives", f"holds {len(value)} texts: give each a row of its own", field)
        return filled(value[0], f"{field}[0]")
    return filled(value, field)


def negatives(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(place, text) of each negative, in the order of the columns. Raises BadRow."""
    found = []
    for column, value in record.items():
        if not is_negative(column) or not is_filled(value):
            continue
        if isinstance(value, list):
            found += [(f"{column}[{k}]", filled(text, f"{column}[{k}]")) for k, text in enumerate(value)]
        else:
            found.append((column, filled(value, column)))
    return found


def is_negative(column: str) -> bool:
    """Whether a column holds negatives: negative, negatives, neg, negative_1, negative_2, ..."""
    return column in NEGATIVES or re.fullmatch(r"negative_\d+", column) is not None

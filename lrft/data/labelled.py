"""From a raw record to a text, or two, with a label, several labels, or a number.

labelled    {"text": T, "label": L}, where the text may also be called sentence;
            {"text": T, "text_pair": U, "label": L}, and premise with hypothesis, sentence1 with sentence2, question
            with sentence. A label is a name, a whole number or a truth value; a list of them gives a row several.
scored      the same with a number as the label
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lrft.data.records import BadRow, kind_of
from lrft.data.sample import Sample
from lrft.data.turns import filled

# Column of the first text -> that of the second one, where rows have it.
PAIRS = {
    "text": "text_pair",
    "premise": "hypothesis",
    "sentence1": "sentence2",
    "question": "sentence",
    "sentence": "",
}
ALONE = ("text", "sentence")
TEXTS = tuple(dict.fromkeys(column for pair in PAIRS.items() for column in pair if column))
NOT_ONE = "give training.objective: {classification: {problem: regression}} for numbers"


def labelled(record: Mapping[str, Any], chat: bool) -> Sample:
    """The text or texts of a record, and its labels by name. Raises BadRow."""
    first, second = texts(record)
    value = record["label"]
    names = tuple(dict.fromkeys(name_of(one, "label") for one in (value if isinstance(value, list) else [value])))
    return Sample(prompt=first, answer=second, classes=names, several=isinstance(value, list))


def scored(record: Mapping[str, Any], chat: bool) -> Sample:
    """The text or texts of a record, and the number "label". Raises BadRow."""
    first, second = texts(record)
    return Sample(prompt=first, answer=second, numbers={"label": (number_of(record["label"], "label"),)})


def texts(record: Mapping[str, Any]) -> tuple[str, str]:
    """The first text and the second, "" where there is one. Raises BadRow."""
    for first, second in PAIRS.items():
        if first in record and (second in record or first in ALONE):
            return filled(record[first], first), filled(record[second], second) if second in record else ""
    words = ", ".join(f"{first} and {second}" if second else first for first, second in PAIRS.items())
    raise BadRow("missing key", f"no text; expected {words}; there are {', '.join(record) or 'none'}", "text")


def name_of(value: Any, field: str) -> str:
    """A label's name. Raises BadRow."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if isinstance(value, float):
        raise BadRow("label", f"is {value}, neither a name nor a whole number: {NOT_ONE}", field)
    return filled(value, field)


def number_of(value: Any, field: str) -> float:
    """A finite number. Raises BadRow."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        said = "a number that is not finite" if isinstance(value, float) else kind_of(value)
        raise BadRow("label", f"must be a number, this is {said}", field)
    return found

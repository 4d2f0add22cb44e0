"""From a raw record to words with a label each.

tagged  {"tokens": words, "tags": labels}, or what others call the two (`WORDS`), a label for each word: a name, or a
        number;
        {"text": text, "entities": [{"start": n, "end": n, "label": name}, ...]}, places in characters, the end not
        included. Words and signs inside of an entity get B- and I- before its label, all others O.

Words are put together with a space between each two, which is what a pipeline will be asked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lrft.data.labelled import name_of
from lrft.data.records import BadRow, kind_of
from lrft.data.sample import Sample
from lrft.data.turns import filled

WORDS: tuple[tuple[str, ...], ...] = (
    *((words, tags) for words in ("tokens", "words") for tags in ("tags", "ner_tags", "labels")),
    ("text", "entities"),
)
OUTSIDE = "O"
Span = tuple[int, int]


def tagged(record: Mapping[str, Any], chat: bool) -> Sample:
    """The text with the places of its words, and the label of each by name. Raises BadRow."""
    columns = next((each for each in WORDS if record.keys() >= set(each)), None)
    if columns is None:
        wanted = ", or ".join(map(" and ".join, WORDS))
        raise BadRow("missing key", f"expected {wanted}; there are {', '.join(record) or 'none'}", WORDS[0][1])
    first, second = columns
    if second == "entities":
        text = filled(record[first], first)
        spans = [found.span() for found in re.finditer(r"\w+|[^\w\s]", text)]
        return Sample(prompt=text, spans=tuple(spans), classes=tuple(of_entities(record[second], spans, len(text))))
    words, tags = listed(record[first], first), listed(record[second], second)
    if len(words) != len(tags):
        raise BadRow("unequal lengths", f"has {len(tags)} labels for {len(words)} {first}", second)
    spans, at = [], 0
    for k, word in enumerate(words):
        spans.append((at, at + len(filled(word, f"{first}[{k}]"))))
        at = spans[-1][1] + 1
    return Sample(
        prompt=" ".join(words),
        spans=tuple(spans),
        classes=tuple(name_of(tag, f"{second}[{k}]") for k, tag in enumerate(tags)),
    )


def listed(value: Any, field: str) -> list[Any]:
    """A list with something in it. Raises BadRow."""
    if not isinstance(value, list):
        raise BadRow("null" if value is None else "wrong type", f"must be a list, this is {kind_of(value)}", field)
    if not value:
        raise BadRow("empty", "holds nothing", field)
    return value


def of_entities(value: Any, words: list[Span], most: int) -> list[str]:
    """The label of each word. Raises BadRow for entities outside of the text, that overlap, or that cut a word."""
    if not isinstance(value, list):
        raise BadRow("wrong type", f"must be a list of entities, this is {kind_of(value)}", "entities")
    tags = [OUTSIDE] * len(words)
    for k, entity in enumerate(value):
        field = f"entities[{k}]"
        if not isinstance(entity, dict) or not {"start", "end", "label"} <= entity.keys():
            raise BadRow("entity", "must have start, end and label", field)
        start, end, label = entity["start"], entity["end"], filled(entity["label"], f"{field}.label")
        if type(start) is not int or type(end) is not int or not 0 <= start < end <= most:
            raise BadRow("entity", f"{start!r} to {end!r} is no part of a text of {most} characters", field)
        inside = [n for n, (first, last) in enumerate(words) if first < end and start < last]
        if not inside or words[inside[0]][0] < start or words[inside[-1]][1] > end:
            raise BadRow("entity", f"{start} to {end} cuts a word" if inside else "holds no word", field)
        if any(tags[n] != OUTSIDE for n in inside):
            raise BadRow("entity", "overlaps another one", field)
        for n in inside:
            tags[n] = f"{'B' if n == inside[0] else 'I'}-{label}"
    return tags

"""Entities of sequences of tags, and how many of them are found: precision, recall and F1.

An entity is a longest stretch of tags of one type. It begins with B- or S-, with I- or E- of another type than the tag
before, and behind O, E- or S-; it ends before O, B-, S- or another type, and with E- or S-. That is the definition of
the CoNLL-2000 evaluation (Tjong Kim Sang and Buchholz, 2000, section 4), which seqeval has too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import Tensor

Entity = tuple[str, int, int]


def are_entities(names: Iterable[str]) -> bool:
    """Whether these labels are tags of entities: O, and a type behind B-, I-, E- or S-."""
    return all(name == "O" or re.match(r"[BIES]-.", name) for name in names)


def entities(tags: Sequence[str]) -> set[Entity]:
    """(type, first, last + 1) of each entity."""
    found, start = set[Entity](), 0
    before, kind = "O", ""
    for at, tag in enumerate([*tags, "O"]):
        now, _, now_kind = tag.partition("-")
        same = now in "IE" and before in "BI" and now_kind == kind
        if before != "O" and not same:
            found.add((kind, start, at))
        if not same:
            start = at
        before, kind = now, now_kind
    return found


def counts_of(pairs: Iterable[tuple[Sequence[str], Sequence[str]]]) -> list[int]:
    """[found that are true, found, true] over (true tags, found tags) of several sequences."""
    counts = [0, 0, 0]
    for true, called in pairs:
        wanted, got = entities(true), entities(called)
        counts = [n + more for n, more in zip(counts, (len(wanted & got), len(got), len(wanted)), strict=True)]
    return counts


def of_entities(counts: Tensor) -> dict[str, float]:
    """F1, precision and recall of counts (3,); 0 where there is nothing to divide by."""
    right, called, true = counts.tolist()
    return {
        "F1": 2 * right / (called + true) if called + true else 0.0,
        "precision": right / called if called else 0.0,
        "recall": right / true if true else 0.0,
    }

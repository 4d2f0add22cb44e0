"""What there is in a data set: counts by source and reason, lengths, duplicates, overlaps of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lrft.data.config import Input, Settings
from lrft.data.dataset import Rows
from lrft.data.duplicates import Pair, same_rows, similar_rows
from lrft.data.format import detect
from lrft.data.ingest import collect
from lrft.data.readers import find
from lrft.data.records import BadRow
from lrft.data.report import SourceReport, histogram, quantiles
from lrft.errors import DataError
from lrft.registry import DEFAULT_ROWS, ROWS

SHOWN = 5
HEAD = 200
"""Characters of a row that are shown"""
# Rows of a file are looked at as they are, whatever a chat template would make of them.
_ANY_TEMPLATE = "{{ messages }}{{ tools }}"


@dataclass(frozen=True)
class Part:
    """Rows of one role: train, validation or test. numbers: of each row, token ids or those of words."""

    role: str
    places: list[str]
    numbers: list[np.ndarray]
    texts: list[str]


def part_of_rows(role: str, rows: Rows, tokenizer: Any) -> Part:
    """Tokenised rows."""
    n = range(len(rows))
    texts = [tokenizer.decode(rows.tokens(i)[:HEAD].tolist())[:HEAD] for i in n]
    return Part(role, [rows.source(i) for i in n], [np.asarray(rows.tokens(i), dtype=np.int64) for i in n], texts)


def parts_of_files(files: dict[str, str], seed: int = 0) -> tuple[list[Part], list[SourceReport]]:
    """The files of {role: path}, row by row in words, without a tokenizer. Raises DataError."""
    words: dict[str, int] = {}
    parts, reports = [], []
    for role, path in files.items():
        sources = tuple(find(path))
        read = Input(path, role, sources, "auto", {}, None, special_tokens="text")
        settings = Settings(
            _ANY_TEMPLATE, {}, "assistant", 2, "data.max_length", "drop", "skip", seed, kind=_kind(sources)
        )
        counted: list[SourceReport] = []
        samples = list(collect([read], settings, lambda key: "default", counted))
        if not samples:
            raise DataError(f"{path}: no row can be used: {_first_reason(counted)}")
        texts = ["\n".join(text for each in found.sample.sequences for text in each.texts if text) for found in samples]
        numbers = [np.array([words.setdefault(w, len(words)) for w in text.split()], dtype=np.int64) for text in texts]
        parts.append(Part(role, [found.source for found in samples], numbers, [text[:HEAD] for text in texts]))
        reports += counted
    return parts, reports


def _kind(sources: Sequence[Any]) -> str:
    """The kind of rows that the first good record is."""
    for source in sources:
        for record in source.records():
            if not isinstance(record.value, BadRow):
                return next((kind for kind in ROWS if detect(record.value, kind)), DEFAULT_ROWS)
    return DEFAULT_ROWS


def _first_reason(reports: Sequence[SourceReport]) -> str:
    return next((example["detail"] for report in reports for example in report.examples), "there is none")


def survey(parts: Sequence[Part], sources: Sequence[SourceReport], unit: str) -> dict[str, Any]:
    """Facts as JSON values. unit: what rows are counted in, tokens or words."""
    rows = _Compared(parts)
    return {
        "unit": unit,
        "sources": [_source(source) for source in sources],
        "parts": {part.role: _lengths(part) for part in parts},
        "duplicates": {part.role: rows.duplicates(k) for k, part in enumerate(parts)},
        "overlaps": [
            {"first": parts[a].role, "second": parts[b].role, **rows.overlap(a, b)}
            for b in range(len(parts))
            for a in range(b)
        ],
    }


def _source(source: SourceReport) -> dict[str, Any]:
    keys = ("path", "role", "format", "read", "used", "truncated", "dropped", "ignored")
    return {key: getattr(source, key) for key in keys}


def _lengths(part: Part) -> dict[str, Any]:
    lengths = np.array([len(one) for one in part.numbers], dtype=np.int64)
    order = np.argsort(lengths, kind="stable").tolist()
    ends = [{"source": part.places[i], "length": int(lengths[i]), "text": part.texts[i]} for i in order]
    return {
        "rows": len(lengths),
        "lengths": quantiles(lengths),
        "by_length": histogram(lengths),
        "longest": ends[::-1][:SHOWN],
        "shortest": ends[:SHOWN],
    }


class _Compared:
    """All rows of all parts, with which are the same and which are similar."""

    def __init__(self, parts: Sequence[Part]) -> None:
        numbers = [one for part in parts for one in part.numbers]
        self.places = [place for part in parts for place in part.places]
        self.owners = np.repeat(np.arange(len(parts)), [len(part.numbers) for part in parts]).tolist()
        self.same = same_rows(numbers)
        self.near = similar_rows(numbers)
        self.copies = {i: group for group in self.same for i in group}

    def of(self, i: int, k: int) -> list[int]:
        """The rows of part k with the content of row i."""
        return [j for j in self.copies.get(i, [i]) if self.owners[j] == k]

    def duplicates(self, k: int) -> dict[str, Any]:
        """Within part k: rows beyond the first of each group, and rows that are similar to an earlier one."""
        groups = [own for group in self.same if len(own := [i for i in group if self.owners[i] == k]) > 1]
        pairs = [(a[0], b[0], p) for p in self.near if (a := self.of(p.a, k)) and (b := self.of(p.b, k))]
        return {
            "exact": sum(len(group) - 1 for group in groups),
            "exact_examples": [[self.places[i] for i in group[:SHOWN]] for group in groups[:SHOWN]],
            "near": len({max(a, b) for a, b, _ in pairs}),
            "near_examples": self.examples(pairs),
        }

    def overlap(self, a: int, b: int) -> dict[str, Any]:
        """Rows of part b that part a has too, or has something similar to."""
        groups = [(own, theirs) for g in self.same if (own := self.of(g[0], a)) and (theirs := self.of(g[0], b))]
        exact = {i for _, theirs in groups for i in theirs}
        pairs = [
            (own[0], i, pair)
            for pair in self.near
            for one, other in ((pair.a, pair.b), (pair.b, pair.a))
            if (own := self.of(one, a))
            for i in self.of(other, b)
            if i not in exact
        ]
        return {
            "exact": len(exact),
            "exact_examples": [[self.places[own[0]], self.places[theirs[0]]] for own, theirs in groups[:SHOWN]],
            "near": len({i for _, i, _ in pairs}),
            "near_examples": self.examples(pairs),
        }

    def examples(self, pairs: Sequence[tuple[int, int, Pair]]) -> list[dict[str, Any]]:
        """The likest first."""
        likest = sorted(pairs, key=lambda found: -found[2].similarity)[:SHOWN]
        return [
            {"rows": [self.places[a], self.places[b]], "similarity": round(pair.similarity, 3)} for a, b, pair in likest
        ]

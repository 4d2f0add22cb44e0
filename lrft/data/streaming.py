"""Rows that are made while a run goes on: each drawn from a window that moves over the files.

The window is filled with the next rows in the order of the files, and a row is drawn from it by a number that is a
function of the seed, the epoch and how many rows the epoch has given. A window of one row keeps the order of the files;
one as large as the data draws from all of them. An epoch ends when all its rows have come, its last step may have
fewer.

The position is where reading stands and which rows the window holds, by their places. Who goes on from there reads the
files up to it again, and renders and tokenises only what the window holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from lrft.data.config import Input
from lrft.data.dataset import Row, Rows
from lrft.data.records import Record, Source
from lrft.data.report import DataReport
from lrft.errors import DataError
from lrft.utils.seeds import seed_of
from lrft.utils.text import count

Place = tuple[int, int, int]
"""The number of a source, that of a record in it, and which of the rows it gave"""
Make = Callable[[Sequence[Input]], Iterator[Row]]


@dataclass
class Position:
    """epoch: from 0. taken: rows that it has given. read: the last row that was made. window: those that wait."""

    epoch: int
    taken: int
    read: Place | None
    window: list[Place]

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> Position:
        """What `RowStream.state` gave, from JSON."""
        read, window = saved["read"], [_place(place) for place in saved["window"]]
        return cls(saved["epoch"], saved["taken"], None if read is None else _place(read), window)


def _place(value: Sequence[int]) -> Place:
    source, record, row = value
    return source, record, row


class RowStream:
    """The rows of a run, in order, without end. Every process makes all of them."""

    def __init__(
        self, inputs: Sequence[Input], make: Make, report: DataReport, *, window: int, seed: int, shuffle: bool
    ) -> None:
        """make: from inputs to their rows in order. report: where it counts them. window: rows that each is drawn
        from."""
        self._inputs, self._make, self._report = inputs, make, report
        self._size, self._seed, self._shuffle = window if shuffle else 1, seed, shuffle
        self._number = {
            (item.number, source.name): n
            for n, (item, source) in enumerate((item, source) for item in inputs for source in item.sources)
        }
        self._go_on_from(Position(0, 0, None, []))

    @property
    def epoch(self) -> int:
        """How many times all rows have come."""
        return self._at.epoch

    @property
    def counts(self) -> str:
        """What was read since the run began or was resumed, in words."""
        dropped = "".join(f", {n:,} dropped: {reason}" for reason, n in self._report.dropped.items())
        return f"{count(self._report.read, 'row')} read{dropped}"

    def first(self, n: int) -> Rows:
        """The first n rows, in the order of the files."""
        return Rows.of([row for _, row in islice(self._left, n)])

    def take(self, n: int) -> Rows:
        """The next n rows, fewer at the end of an epoch. Raises DataError as preparing rows does, and where there is
        no row."""
        found: list[Row] = []
        while len(found) < n and self._filled():
            at = self._draw() if self._shuffle else 0
            row = self._window[at]
            self._window[at] = self._window[-1]
            self._window.pop()
            self._at.taken += 1
            found.append(row[1])
        if not found:
            raise DataError("nothing to train on: no row of the streamed data is used")
        if not self._filled():
            self._go_on_from(Position(self._at.epoch + 1, 0, None, []))
        return Rows.of(found)

    def state(self) -> dict[str, Any]:
        """The position, as JSON values."""
        return {**vars(self._at), "window": [place for place, _ in self._window]}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises DataError where the rows of the window are not in the files."""
        self._go_on_from(Position.of(saved))

    def _go_on_from(self, at: Position) -> None:
        self._at, self._window = at, list[tuple[Place, Row]]()
        waiting, kept = set(at.window), dict[Place, Row]()
        self._left = self._placed(at.read, waiting)
        while len(kept) < len(waiting):
            found = next(self._left, None)
            if found is None:
                raise DataError("the streamed files do not hold the rows of the checkpoint: they have changed")
            if found[0] in waiting:
                kept[found[0]] = found[1]
        self._window = [(place, kept[place]) for place in at.window]

    def _filled(self) -> bool:
        """Whether the window holds a row, after it has been filled."""
        while len(self._window) < self._size and (found := next(self._left, None)) is not None:
            self._window.append(found)
            self._at.read = found[0]
        return bool(self._window)

    def _draw(self) -> int:
        seed = seed_of(self._seed, "stream", self._at.epoch, self._at.taken)
        return int(np.random.default_rng(seed).integers(len(self._window)))

    def _placed(self, read: Place | None, waiting: set[Place]) -> Iterator[tuple[Place, Row]]:
        """Rows with their places: those `waiting`, and all behind `read`."""
        records = {place[:2] for place in waiting}
        last, count = (-1, -1), 0
        for row in self._make(self._behind(read, records)):
            record = (self._number[row.entry, row.file], row.number)
            last, count = record, count + 1 if record == last else 0
            place = (*record, count)
            if read is None or place > read or place in waiting:
                yield place, row

    def _behind(self, read: Place | None, waiting: set[tuple[int, int]]) -> list[Input]:
        """The inputs with the records that are needed: those `waiting`, and all from the record of `read` on."""
        if read is None:
            return list(self._inputs)
        found = []
        for item in self._inputs:
            numbered = [(self._number[item.number, source.name], source) for source in item.sources]
            needed = [(n, source) for n, source in numbered if n >= read[0] or any(n == one for one, _ in waiting)]
            sources = tuple(_filtered(source, n, read, waiting) for n, source in needed)
            found += [replace(item, sources=sources)] if sources else []
        return found


def _filtered(source: Source, n: int, read: Place, waiting: set[tuple[int, int]]) -> Source:
    """The source, number n, with the records that are needed."""

    def records() -> Iterator[Record]:
        return (r for r in source.records() if (n, r.number) >= read[:2] or (n, r.number) in waiting)

    return replace(source, records=records)

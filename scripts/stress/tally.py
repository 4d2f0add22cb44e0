"""The figures of a campaign: what was tried, how often, and every violation in words."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field


@dataclass
class Figure:
    """One row of the table: `tried` cases, of which `violations` did not end as they must."""

    name: str
    tried: int = 0
    violations: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    """how the cases ended, counted by words"""
    seconds: float = 0.0

    def note(self, words: str, n: int = 1) -> None:
        self.notes[words] = self.notes.get(words, 0) + n

    def wrong(self, words: str) -> None:
        self.violations.append(words)

    def line(self) -> str:
        told = ", ".join(f"{count} {words}" for words, count in sorted(self.notes.items()))
        return f"{self.name:<34} {self.tried:>7,} {len(self.violations):>10} {self.seconds:>8.0f}  {told}"


HEAD = f"{'figure':<34} {'tried':>7} {'violations':>10} {'seconds':>8}  how they ended"
SHOWN = 20


class Tally:
    """The rows of one campaign, and its end: no case begins after `deadline`."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.figures: list[Figure] = []

    @property
    def over(self) -> bool:
        return time.monotonic() > self.deadline

    @contextmanager
    def figure(self, name: str) -> Iterator[Figure]:
        """A new row, to be filled inside; told on standard error at its end: a campaign cut off has said something."""
        figure, began = Figure(name), time.monotonic()
        self.figures.append(figure)
        yield figure
        figure.seconds = time.monotonic() - began
        print(figure.line(), file=sys.stderr, flush=True)

    @property
    def violations(self) -> int:
        return sum(len(figure.violations) for figure in self.figures)

    def table(self) -> str:
        lines = [HEAD, *(figure.line() for figure in self.figures)]
        for figure in self.figures:
            lines += [f"VIOLATION  {figure.name}: {words}" for words in figure.violations[:SHOWN]]
        return "\n".join(lines)

    def to_json(self) -> str:
        return json.dumps([asdict(figure) for figure in self.figures], indent=1)

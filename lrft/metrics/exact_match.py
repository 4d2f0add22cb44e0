"""Exact match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Share of the generated answers that are what is expected, white space around them aside."""

    name: ClassVar[str] = "exact_match"

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        return sum(a["answer"] == a["expected"] for a in answers) / len(answers)

"""A metric: how long answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class AnswerWords(Metric):
    """Words of the generated answers over those of the expected ones: above 1, the model says too much."""

    name: ClassVar[str] = "answer-words"
    lower_is_better: ClassVar[bool] = True

    floor: int = 1
    """Words that are expected at least, in all rows together."""

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        said, expected = (sum(len(a[key].split()) for a in answers) for key in ("answer", "expected"))
        return said / max(expected, self.floor)

"""Base class of metrics. One file each in this folder, or an entry point of `lrft.metrics`; `evaluation.metrics` names
those that are wanted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar


class Metric:
    """Abstract. A subclass is a frozen dataclass: its name in `evaluation.metrics`, its options, and `score`."""

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    """the package of an index that it is made of, when lrft does not bring it; a run without it is refused"""
    of_rows: ClassVar[bool] = False
    """found in the pass that makes the validation loss: nothing is generated, and `score` is never asked"""
    lower_is_better: ClassVar[bool] = False
    """how `evaluation.best` compares it"""

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        """Of at least one generated answer: "prompt", "expected" and "answer" of each, without white space around."""
        raise NotImplementedError("abstract")

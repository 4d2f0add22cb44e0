"""Perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class Perplexity(Metric):
    """e to the power of the validation loss, which every evaluation of a token loss has."""

    name: ClassVar[str] = "perplexity"
    of_rows: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

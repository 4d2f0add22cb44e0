"""Token accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class TokenAccuracy(Metric):
    """Share of the trained tokens that the model finds likeliest, after the row's own tokens before each."""

    name: ClassVar[str] = "token_accuracy"
    of_rows: ClassVar[bool] = True

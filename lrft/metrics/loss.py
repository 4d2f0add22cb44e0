"""The validation loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class Loss(Metric):
    """The mean loss over the validation rows, which every evaluation has."""

    name: ClassVar[str] = "loss"
    of_rows: ClassVar[bool] = True
    lower_is_better: ClassVar[bool] = True

"""rsLoRA. Kalajdzievski, 2023, arXiv 2312.03732."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lrft.adapters.part import Part


@dataclass(frozen=True)
class RsLora(Part):
    """Divides the factor of the update by sqrt(r) instead of r, so that a higher rank does not learn more slowly."""

    name: ClassVar[str] = "rslora"
    kind: ClassVar[str] = "scaling"
    paper: ClassVar[str] = "arXiv 2312.03732"
    equation: ClassVar[str] = "s = alpha / sqrt(r)"
    evidence: ClassVar[str] = "forward, merge and exported file compared with PEFT 0.21"
    slots: ClassVar[tuple[str, ...]] = ("scale",)
    requires: ClassVar[tuple[str, ...]] = ("scale",)

    def alpha(self, rank: int) -> float:
        return 16.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)

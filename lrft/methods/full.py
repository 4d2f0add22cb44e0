"""Full fine-tuning of the chosen layers, as a change beside the frozen weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.model import fused_linear


@dataclass(frozen=True)
class Full(Method):
    """Trains a change as large as the weight: the yardstick for low-rank methods, and what galore and others project.

    The rank is that of the optimiser's projection where there is one; without, it says nothing.
    Weight decay draws the change to zero: towards the base's weight, not towards no weight.
    """

    name: ClassVar[str] = "full"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "-"
    equation: ClassVar[str] = "W + D"
    parameters: ClassVar[str] = "d k"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "training steps compared with stock torch training the weight itself"
    learning_rate: ClassVar[float] = 2e-5
    rate_source: ClassVar[str] = "the full fine-tuning of LLaMA-2-7B in arXiv 2404.02948"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "dense")
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    quantization_conflict: ClassVar[str] = (
        "keeps float32 copies of every weight, so quantising the base saves no memory"
    )

    def build(self, site: Site) -> Delta:
        return FullAdapter(site)


class FullAdapter(Delta):
    """D (d, k) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.D = nn.Parameter(torch.zeros(site.d, site.k, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return 1.0 * self.D

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """One product with W + D; where the base is stored otherwise than plainly, two."""
        if self.is_fast(x, base):
            W, bias = fused_linear.parts_of(base)
            return fused_linear.linear_sum(x, W, bias, self.D)
        return self.eager(x, x, base)

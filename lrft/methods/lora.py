"""LoRA. Hu et al., 2021, arXiv 2106.09685, section 4.1; initial values as in the authors' loralib."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_lora import LoraType, lora_type


@dataclass(frozen=True)
class Lora(Method):
    """Two thin matrices beside the frozen weight: B starts at zero, A at random."""

    name: ClassVar[str] = "lora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2106.09685"
    equation: ClassVar[str] = "W + (alpha / r) B A"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA (unchanged) or merged model"
    evidence: ClassVar[str] = "forward, merge and exported file compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "arXiv 2305.14314, LLaMA 7B and 13B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "pair", "scale", "redrawable")
    peft_type: ClassVar[str] = "LORA"

    @classmethod
    def in_peft(cls) -> LoraType:
        return lora_type(LoraAdapter)

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return LoraAdapter(site)


class LoraAdapter(Delta):
    """A (r, k) uniform in +-1/sqrt(k), which is Kaiming's rule with a = sqrt(5); B (d, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A), self.B)

    def factors(self) -> Factors:
        return Factors(self.B, self.A, self.site.scale)

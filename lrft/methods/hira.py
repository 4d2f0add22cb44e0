"""HiRA, the weight multiplied entry by entry with a low-rank matrix. Huang et al., ICLR 2025, "HiRA:
Parameter-efficient Hadamard high-rank adaptation for large language models"; first values as in PEFT.

    W' = W + W * (B A)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers


@dataclass(frozen=True)
class Hira(Method):
    """Each weight changes by a factor of its own, and the factors are of low rank: the update has the weight's rank."""

    name: ClassVar[str] = "hira"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "openreview TwJrTz9cRS"
    equation: ClassVar[str] = "W + W * (B A), * entry by entry"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT HIRA, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and bounds of the first values compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "ours: ten times LoRA's best on a tiny task"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "HIRA"

    @classmethod
    def in_peft(cls) -> HiraType:
        return HiraType(
            "HIRA",
            HiraAdapter,
            {"A": Named("hira_A", "rk"), "B": Named("hira_B", "dr")},
            training=("rank_pattern",),
            dropout="hira_dropout",
            conv1d=True,
        )

    def build(self, site: Site) -> Adapter:
        return HiraAdapter(site)


class HiraAdapter(Adapter):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + W0 * (self.B @ self.A)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """W x, and the update's product beside it: W times 1 + B A in bfloat16 would lose a factor that is near 1."""
        y = base(x)
        dropped = nn.functional.dropout(x, self.dropout) if self.dropout and self.training else x
        with torch.autocast(x.device.type, enabled=False):
            update = layers.dense(base).to(self.site.dtype) * (self.B @ self.A)
        return y + linear(self.cast(dropped), update).to(y.dtype)


@dataclass(frozen=True)
class HiraType(PeftType):
    """PEFT 0.21 reads `rank_pattern` and builds every layer with `r`: the tensors say what was built."""

    def said_rank(self, name: str, config: Mapping[str, Any]) -> None: ...

"""GLoRA, a scaling and an addition of the weight, both of low rank. Chavan et al., 2023, arXiv 2306.07967; with
the form "lora" for A and B, first values as in PEFT.

    W' = W + W * (A_d A_u) + B_d B_u,    * entry by entry

The paper also changes biases (C, D and E); adapters here change weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.initial import kaiming
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model import linear as layers

EMPTY = ("glora_C.zeros", "glora_D.zeros", "glora_E.zeros")


@dataclass(frozen=True)
class Glora(Method):
    """HiRA and LoRA together: each weight changes by a factor of its own and by a number, both of low rank."""

    name: ClassVar[str] = "glora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2306.07967"
    equation: ClassVar[str] = "W + W * (A_d A_u) + B_d B_u, * entry by entry"
    parameters: ClassVar[str] = "2 r (d + k)"
    exports: ClassVar[str] = "PEFT GLORA where all ranks are one, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and spread of the first values compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA, which is a part of it"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "GLORA"

    @classmethod
    def in_peft(cls) -> GloraType:
        return GloraType(
            "GLORA",
            GloraAdapter,
            {
                "factor_out": Named("glora_A.Xd", "dr"),
                "factor_in": Named("glora_A.Xu", "rk"),
                "added_out": Named("glora_B.Xd", "dr"),
                "added_in": Named("glora_B.Xu", "rk"),
            },
            fixed={"config_A_B": ("lora",), "config_C": ("none", "lora", "vector")},
            training=("config_D_E",),
            repeated=EMPTY,
        )

    def build(self, site: Site) -> Adapter:
        return GloraAdapter(site)


class GloraAdapter(Adapter):
    """factor_in and added_in (r, k) uniform in +-1/sqrt(k), factor_out and added_out (d, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.factor_out = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.factor_in = nn.Parameter(kaiming(site.rank, site.k, site.dtype))
        self.added_out = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.added_in = nn.Parameter(kaiming(site.rank, site.k, site.dtype))

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + W0 * (self.factor_out @ self.factor_in) + self.added_out @ self.added_in

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """W x, and the changes' products beside it, which a sum in bfloat16 would lose."""
        y = base(x)
        dropped = self.cast(dropout(x, self.dropout) if self.dropout and self.training else x)
        with torch.autocast(x.device.type, enabled=False):
            factor = layers.dense(base).to(self.site.dtype) * (self.factor_out @ self.factor_in)
        change = linear(dropped, factor) + linear(linear(dropped, self.added_in), self.added_out)
        return y + change.to(y.dtype)


@dataclass(frozen=True)
class GloraType(PeftType):
    """What the file has of biases is refused with it: PEFT writes zeros where there is none."""

    def written(self, adapter: Adapter) -> dict[str, Tensor]:
        site = adapter.site
        empty = [torch.zeros(shape, dtype=site.dtype) for shape in ((site.k, 1), (site.d,), (site.d,))]
        return {**super().written(adapter), **dict(zip(EMPTY, empty, strict=True))}

    def config(self, method: Any, adapters: Any, modules: Any) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"config_D_E": "none"}

"""DEFT, a subspace of the outputs taken away and filled anew. Kumar et al., 2025, arXiv 2509.22793; first values as in
PEFT.

    W' = W + Q (s R - T' W),    decomposition relu: Q = P, T = max(P, 0);  qr: Q = T = an orthonormal basis of P

R starts at T' W / s, where the change is zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Deft(Method):
    """Takes the part of the weight in r trained directions of the outputs away, and puts a trained one in its place."""

    name: ClassVar[str] = "deft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2509.22793"
    equation: ClassVar[str] = "W + Q ((alpha / r) R - T' W), Q and T (d, r) made of a trained P"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT DEFT where all ranks are one, or merged model"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA, whose numbers have the same size"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    peft_type: ClassVar[str] = "DEFT"

    decomposition_method: Literal["relu", "qr"] = "relu"
    """What is made of P: P and its positive part, or an orthonormal basis, so that exactly a subspace goes."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return DeftType(
            "DEFT",
            DeftAdapter,
            {"P": Named("deft_P", "dr"), "R": Named("deft_R", "rk")},
            options={"decomposition_method": "decomposition_method"},
            fixed={"para": (False,)},
            alpha="alpha",
            training=("init_scale",),
            dropout="deft_dropout",
            conv1d=True,
        )

    def alpha(self, rank: int) -> float:
        return float(rank)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Adapter:
        if site.rank > site.d:
            raise ValueError(f"deft has at most as many directions as the layer's {site.d} outputs: lower the rank")
        return DeftAdapter(site, self.decomposition_method)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        _, T = adapter.directions()
        adapter.R.copy_(T.T.to(W0.device) @ W0 / adapter.site.scale)


class DeftAdapter(Adapter):
    """P (d, r) normal, R (r, k) = T' W / s."""

    def __init__(self, site: Site, decomposition: str) -> None:
        super().__init__(site)
        self.decomposition = decomposition
        self.P = nn.Parameter(torch.randn(site.d, site.rank, dtype=site.dtype) * 0.02)
        self.R = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype))

    def directions(self) -> tuple[Tensor, Tensor]:
        """Q and T, (d, r) each."""
        if self.decomposition == "relu":
            return self.P, self.P.relu()
        Q, _ = torch.linalg.qr(self.P)
        return Q, Q

    def weight(self, W0: Tensor) -> Tensor:
        Q, T = self.directions()
        return W0 + Q @ (self.site.scale * self.R - T.T @ W0)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        y = base(x)
        with torch.autocast(x.device.type, enabled=False):
            plain = (y if base.bias is None else y - base.bias).to(self.site.dtype)
            seen = x.to(self.site.dtype)
            dropped = dropout(seen, self.dropout) if self.dropout and self.training else seen
            Q, T = self.directions()
            change = linear(self.site.scale * linear(dropped, self.R) - plain @ T, Q)
        return y + change.to(y.dtype)


@dataclass(frozen=True)
class DeftType(PeftType):
    """Without alpha the factor is one."""

    def factor(self, name: str, config: Mapping[str, Any], rank: int) -> float:
        return float(config.get("alpha") or rank) / rank

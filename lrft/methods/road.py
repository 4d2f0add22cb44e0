"""RoAd, rotations of pairs of outputs. Liao, Monz, 2024, arXiv 2409.00119, equation 4; groups as in PEFT.

    W' = diag(c) W + diag(e) J W,    c = alpha cos(theta),  e = alpha sin(theta)

J turns the halves u, v of a group of outputs into -v, u.
road_1 has one angle and one length for each pair of outputs, road_2 for each output, road_4 two of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType

NUMBERS = {"road_1": 0.5, "road_2": 1, "road_4": 2}


@dataclass(frozen=True)
class Road(Method):
    """Turns and scales the outputs in pairs: little more than (IA)^3 trains."""

    name: ClassVar[str] = "road"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.00119"
    equation: ClassVar[str] = (
        "diag(alpha cos(theta)) W + diag(alpha sin(theta)) J W, J a quarter turn of pairs of outputs"
    )
    parameters: ClassVar[str] = "d, 2 d or 4 d; the rank is not used"
    exports: ClassVar[str] = "PEFT ROAD where layers have no bias, or merged model"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-3
    rate_source: ClassVar[str] = "as ia3, which scales the outputs"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    peft_type: ClassVar[str] = "ROAD"

    variant: Literal["road_1", "road_2", "road_4"] = "road_1"
    """Numbers of each pair of outputs: 2, 4 or 8."""
    group_size: Annotated[int, Field(ge=2, multiple_of=2)] = 64
    """Outputs within which pairs are half a group apart; it must divide the outputs of every layer."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "ROAD",
            RoadAdapter,
            {"theta": Named("road_theta", "n"), "alpha": Named("road_alpha", "n")},
            options={"variant": "variant", "group_size": "group_size"},
            rank="",
            scales_bias=True,
        )

    def build(self, site: Site) -> Adapter:
        if site.d % self.group_size:
            near = max((g for g in range(2, self.group_size, 2) if site.d % g == 0), default=0)
            what = f"set group_size to {near}" if near else "it needs an even number of outputs"
            raise ValueError(f"road's groups of {self.group_size} do not divide {site.d} outputs: {what}")
        return RoadAdapter(site, self.variant, self.group_size)


class RoadAdapter(Adapter):
    """theta (n,) zero, alpha (n,) one."""

    def __init__(self, site: Site, variant: str, group: int) -> None:
        super().__init__(site)
        self.variant, self.group = variant, group
        n = round(NUMBERS[variant] * site.d)
        self.theta = nn.Parameter(torch.zeros(n, dtype=site.dtype))
        self.alpha = nn.Parameter(torch.ones(n, dtype=site.dtype))

    def columns(self) -> tuple[Tensor, Tensor]:
        """c - 1 and e, (d,) each."""
        c, e = self.alpha * self.theta.cos(), self.alpha * self.theta.sin()
        if self.variant == "road_1":  # both halves of a group share them
            c, e = (each.view(-1, 1, self.group // 2).expand(-1, 2, -1).flatten() for each in (c, e))
        if self.variant == "road_4":  # the first half is for c, the second for e
            c, e = c.view(-1, 2, self.group)[:, 0].flatten(), e.view(-1, 2, self.group)[:, 1].flatten()
        return c - 1, e

    def change(self, y: Tensor) -> Tensor:
        """What the turn adds to y (..., d)."""
        c, e = self.columns()
        u, v = y.unflatten(-1, (-1, 2, self.group // 2)).unbind(-2)
        return c * y + e * torch.stack([-v, u], dim=-2).flatten(-3)

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + self.change(W0.T).T

    def forward(self, x: Tensor, base: Any) -> Tensor:
        y = base(x)
        plain = y if base.bias is None else y - base.bias
        return y + self.change(self.cast(plain)).to(y.dtype)

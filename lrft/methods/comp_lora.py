"""Comp-LoRA, arXiv 2501.15040. A reconstruction from the abstract: no code is known, nor how many directions it takes.

    dW = s (P_out B) (A P_in),    P_out = I - U U',  P_in = I - V V'

U (d, n) and V (k, n) are the n leading singular vectors of the frozen weight. As long as dW is smaller than the n-th
singular value, the leading n singular triplets of W + dW are those of W. The projections are part of the formula, not a
correction after each step: gradients are projected with them, and the update is never outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Adapter, Delta, Factors
from lrft.adapters.part import Part


@dataclass(frozen=True)
class CompLora(Part):
    """Keeps the update out of the weight's leading singular directions, which stay what they are."""

    name: ClassVar[str] = "comp-lora"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2501.15040"
    equation: ClassVar[str] = "dW = s (I - U U') B A (I - V V'), U and V the weight's n leading singular vectors"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "dense reference of the formula; reconstructed from the paper's abstract"
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "forward")

    directions: Annotated[int, Field(ge=0)] | None = None
    """n, leading directions excluded from the update; null: the rank, at most half of all (chosen by lrft)."""
    side: Literal["both", "in", "out"] = "both"
    """Side on which they are excluded: input, output, or both."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{adapter.site.name}: comp-lora requires an additive update")
        site = adapter.site
        most = min(site.d, site.k)
        n = min(site.rank, most // 2) if self.directions is None else self.directions
        if n >= most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular directions: directions must be fewer")
        projected = Complement(adapter, n, self.side)
        if W0 is not None:
            with torch.no_grad():
                U, _, V = svd.exact(W0, n)
                projected.U.copy_(U)
                projected.V.copy_(V)
        return projected


class Complement(Delta):
    """`inner` between the projections. U (d, n) and V (k, n) are saved: rounding may turn near-equal directions."""

    def __init__(self, inner: Delta, n: int, side: str) -> None:
        super().__init__(inner.site)
        self.inner, self.side = inner, side
        self.U = nn.Parameter(torch.zeros(self.site.d, n, dtype=self.site.dtype), requires_grad=False)
        self.V = nn.Parameter(torch.zeros(self.site.k, n, dtype=self.site.dtype), requires_grad=False)

    def factors(self) -> Factors:
        factors = self.inner.factors()
        if factors is None:
            raise TypeError(f"{self.site.name}: the update has no factors")
        B, A, s = factors
        B = B if self.side == "in" else B - self.U @ (self.U.T @ B)
        A = A if self.side == "out" else A - (A @ self.V) @ self.V.T
        return Factors(B, A, s)

    def delta_weight(self) -> Tensor:
        B, A, s = self.factors()
        return s * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, s = self.factors()
        return s * linear(linear(x, A), B)

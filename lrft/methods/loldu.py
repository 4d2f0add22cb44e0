"""LoLDU. Shi et al., 2024, arXiv 2410.13618: the first r terms of the decomposition W = P L D U, D trained.

L (d, m) is unit lower and U (m, k) unit upper triangular, P a permutation, m = min(d, k). The order is that of the
elimination, not of importance. The released code replaces W by a residual; here W stays and z is the change of D, so
that nothing is rounded and weight decay pulls towards the base. A row of U whose pivot is zero to rounding is not
divided by it. The factor is a number, as it is in effect in the released code, which wraps it as a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.methods.svfit import trained_diagonal


@dataclass(frozen=True)
class Loldu(Method):
    """Trains the first r pivots of the weight's triangular decomposition; the triangles stay frozen."""

    name: ClassVar[str] = "loldu"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2410.13618"
    equation: ClassVar[str] = "W + (alpha / r) P L diag(z) U, W = P L D U, the first r columns of L and rows of U"
    parameters: ClassVar[str] = "r"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "update compared with the released code, to rounding"
    learning_rate: ClassVar[float] = 6e-3
    rate_source: ClassVar[str] = "as svfit, whose diagonal it trains"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    def alpha(self, rank: int) -> float:
        return 1.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} pivots: lower rank {site.rank}")
        return trained_diagonal(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        r = adapter.site.rank
        P, L, U = torch.linalg.lu(W0)
        pivots = U.diagonal()[:r]
        zero = pivots.abs() <= torch.finfo(W0.dtype).eps * W0.abs().max()
        adapter.A.copy_(U[:r] / pivots.masked_fill(zero, 1.0)[:, None])
        adapter.B.copy_((P @ L)[:, :r])

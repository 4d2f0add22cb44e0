"""LoTR. Bershatsky et al., 2024, arXiv 2402.01376; initial values as in the authors' code.

The updates of all layers of one shape are one tensor in Tucker form: L (d, r) and R (r, k) belong to all of them and
are trained, G (r, r) to each. A layer of a lower rank than others of its shape takes the first columns and rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Lotr(Method):
    """A small square matrix per layer, between two thin ones that all layers of the same shape train together."""

    name: ClassVar[str] = "lotr"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2402.01376"
    equation: ClassVar[str] = "W + (alpha / r) L G R, L and R the same for all layers of a shape"
    parameters: ClassVar[str] = "r^2, and r (d + k) once for each shape"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "update compared with dense Tucker tensors by the released formula, in float64"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    init: Literal["unit", "norm"] = "unit"
    """Start of L and R. unit: entries of variance one, as the authors have it, where G's first gradients are large and
    L and R hardly turn; norm: columns of L and rows of R of length one, for which alpha is to be larger."""

    def alpha(self, rank: int) -> float:
        return 1.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        ranks: dict[tuple[int, int], int] = {}
        for site in sites:
            ranks[site.d, site.k] = max(site.rank, ranks.get((site.d, site.k), 0))
        dtype = sites[0].dtype
        return nn.ModuleDict({f"{d}x{k}": Outer(d, k, r, dtype, self.init) for (d, k), r in ranks.items()})

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has no rank above {most}: lower rank {site.rank}")
        return LotrAdapter(site)


class Outer(nn.Module):
    """L (d, r) and R (r, k), normal."""

    def __init__(self, d: int, k: int, r: int, dtype: torch.dtype, start: str) -> None:
        super().__init__()
        of_L, of_R = (1.0, 1.0) if start == "unit" else (1 / math.sqrt(d), 1 / math.sqrt(k))
        self.L = nn.Parameter(of_L * torch.randn(d, r, dtype=dtype))
        self.R = nn.Parameter(of_R * torch.randn(r, k, dtype=dtype))


class LotrAdapter(Delta):
    """G (r, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.G = nn.Parameter(torch.zeros(site.rank, site.rank, dtype=site.dtype))

    def outer(self) -> tuple[Tensor, Tensor]:
        """This layer's L (d, r) and R (r, k): views."""
        own: Any = self.shared[f"{self.site.d}x{self.site.k}"]
        return own.L[:, : self.site.rank], own.R[: self.site.rank]

    def delta_weight(self) -> Tensor:
        L, R = self.outer()
        return self.site.scale * L @ self.G @ R

    def delta(self, x: Tensor) -> Tensor:
        L, R = self.outer()
        return self.site.scale * linear(linear(linear(x, R), self.G), L)

    def factors(self) -> Factors:
        L, R = self.outer()
        return Factors(L @ self.G, R, self.site.scale)

"""LoKr, a Kronecker product of a small matrix and a low-rank one. Yeh et al., 2024, arXiv 2309.14859; shapes and first
values as in PEFT (LyCORIS).

    dW = s C (x) E,    C (n, m),  E (d / n, k / m),  dW[i d/n + a, j k/m + b] = s C[i, j] E[a, b]

E is a product E1 E2 of rank r, unless r reaches half of its larger side. n and m are the largest divisors of d and k
that are at most their roots and at most `factor`, or `factor` itself where it divides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.initial import kaiming
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Lokr(Method):
    """A Kronecker product of two small matrices, the larger one of low rank: full rank from few numbers."""

    name: ClassVar[str] = "lokr"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2309.14859"
    equation: ClassVar[str] = "W + (alpha / r) C (x) (E1 E2), (x) the Kronecker product"
    parameters: ClassVar[str] = "n m + r (d / n + k / m), about sqrt(d k) + r (sqrt(d) + sqrt(k))"
    exports: ClassVar[str] = "PEFT LOKR, or merged model"
    evidence: ClassVar[str] = "shapes, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "ours: ten times LoRA's best on a tiny task"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "LOKR"
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    factor: Annotated[int, Field(ge=-1)] = -1
    """Wanted sides of C; -1 takes the divisors next to the roots of d and k."""
    decompose_both: bool = False
    """C is a product of rank r too, where r is below half of its larger side."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "LOKR",
            LokrAdapter,
            {
                "C": Named("lokr_w1", "nm"),
                "C1": Named("lokr_w1_a", "nr"),
                "C2": Named("lokr_w1_b", "rm"),
                "E": Named("lokr_w2", "ab"),
                "E1": Named("lokr_w2_a", "ar"),
                "E2": Named("lokr_w2_b", "rb"),
            },
            options={"factor": "decompose_factor", "decompose_both": "decompose_both"},
            alpha="alpha",
            patterns=("rank_pattern", "alpha_pattern"),
            fixed={"use_effective_conv2d": (False, True)},
            training=("rank_dropout", "module_dropout", "rank_dropout_scale"),
        )

    def alpha(self, rank: int) -> float:
        return float(rank)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        if self.factor == 0:
            raise ValueError("lokr: factor must be -1 or at least 1")
        return LokrAdapter(site, self.factor, self.decompose_both)


def divided(size: int, factor: int) -> tuple[int, int]:
    """(n, size / n)"""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    most = math.isqrt(size) if factor < 0 else min(math.isqrt(size), factor)
    small = next(m for m in range(most, 0, -1) if size % m == 0)
    return small, size // small


class LokrAdapter(Delta):
    """C (n, m) zero, or C1 (n, r) zero and C2 (r, m); E (d / n, k / m), or E1 (d / n, r) and E2 (r, k / m). What is not
    zero is uniform in +-1/sqrt of its columns."""

    def __init__(self, site: Site, factor: int, decompose_both: bool) -> None:
        super().__init__(site)
        r = site.rank
        (n, rows), (m, columns) = divided(site.d, factor), divided(site.k, factor)
        self.columns = columns
        if decompose_both and r < max(n, m) / 2:
            self.C1 = nn.Parameter(torch.zeros(n, r, dtype=site.dtype))
            self.C2 = nn.Parameter(kaiming(r, m, site.dtype))
        else:
            self.C = nn.Parameter(torch.zeros(n, m, dtype=site.dtype))
        if r < max(rows, columns) / 2:
            self.E1 = nn.Parameter(kaiming(rows, r, site.dtype))
            self.E2 = nn.Parameter(kaiming(r, columns, site.dtype))
        else:
            self.E = nn.Parameter(kaiming(rows, columns, site.dtype))

    def small(self) -> Tensor:
        return self.C if hasattr(self, "C") else self.C1 @ self.C2

    def delta_weight(self) -> Tensor:
        E = self.E if hasattr(self, "E") else self.E1 @ self.E2
        return self.site.scale * torch.kron(self.small(), E.contiguous())

    def delta(self, x: Tensor) -> Tensor:
        """x as (m, k / m): E from the right, C from the left."""
        parts = x.unflatten(-1, (-1, self.columns))
        inner = linear(parts, self.E) if hasattr(self, "E") else linear(linear(parts, self.E2), self.E1)
        return self.site.scale * linear(inner.transpose(-1, -2), self.small()).transpose(-1, -2).flatten(-2)

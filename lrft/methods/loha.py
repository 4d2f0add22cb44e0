"""LoHa, two low-rank updates multiplied entry by entry. Hyeon-Woo et al., 2022, arXiv 2108.06098, for whole matrices;
Yeh et al., 2024, arXiv 2309.14859, as an update. First values as in PEFT.

    dW = s (B1 A1) * (B2 A2),    of a rank up to r^2: entry by entry it is the product of the factors below

        B[i, (m, n)] = B1[i, m] B2[i, n],    A[(m, n), j] = A1[m, j] A2[n, j]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, PeftForm, Site
from lrft.adapters.initial import kaiming
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Loha(Method):
    """Two low-rank matrices multiplied entry by entry: a rank up to r squared."""

    name: ClassVar[str] = "loha"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2309.14859"
    equation: ClassVar[str] = "W + (alpha / r) (B1 A1) * (B2 A2), * entry by entry"
    parameters: ClassVar[str] = "2 r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank r^2, PEFT LOHA, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and bounds of the first values compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-4
    rate_source: ClassVar[str] = "ours: three times LoRA's best on a tiny task"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "LOHA"
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "LOHA",
            LohaAdapter,
            {
                "B1": Named("hada_w1_a", "dr"),
                "A1": Named("hada_w1_b", "rk"),
                "B2": Named("hada_w2_a", "dr"),
                "A2": Named("hada_w2_b", "rk"),
            },
            alpha="alpha",
            patterns=("rank_pattern", "alpha_pattern"),
            fixed={"use_effective_conv2d": (False, True)},
            training=("rank_dropout", "module_dropout"),
        )

    def alpha(self, rank: int) -> float:
        return float(rank)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return LohaAdapter(site)


class LohaAdapter(Delta):
    """B1, B2 (d, r) and A1 (r, k) uniform in +-1/sqrt of their columns, A2 (r, k) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.B1 = nn.Parameter(kaiming(site.d, site.rank, site.dtype))
        self.A1 = nn.Parameter(kaiming(site.rank, site.k, site.dtype))
        self.B2 = nn.Parameter(kaiming(site.d, site.rank, site.dtype))
        self.A2 = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * (self.B1 @ self.A1) * (self.B2 @ self.A2)

    def thin(self) -> Factors:
        """B (d, r^2) and A (r^2, k)."""
        B = (self.B1[:, :, None] * self.B2[:, None, :]).flatten(1)
        A = (self.A1[:, None, :] * self.A2[None, :, :]).flatten(0, 1)
        return Factors(B, A, self.site.scale)

    def factors(self) -> Factors | None:
        """Where two products with them are cheaper than one with the dense update."""
        site = self.site
        return self.thin() if site.rank**2 * (site.d + site.k) < site.d * site.k else None

    def peft(self) -> PeftForm:
        B, A, scale = self.thin()
        return PeftForm(A, B, scale)

"""MELoRA. Ren et al., 2024, arXiv 2402.17263, section 3; initial values as in the released code.

    dW = s blockdiag(B_1 A_1, ..., B_n A_n),    A_i (r, k / n), B_i (d / n, r)

The released code leaves out the last inputs and outputs where n does not divide them; here that is refused. One rank
serves all n: the paper's mixed ranks are not offered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Melora(Method):
    """Several mini LoRAs along the diagonal of the weight: n times the rank of LoRA for the same numbers."""

    name: ClassVar[str] = "melora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2402.17263"
    equation: ClassVar[str] = "W + (alpha / r) blockdiag(B_1 A_1, ..., B_n A_n)"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank n r, or merged model"
    evidence: ClassVar[str] = "update compared block by block with the released formula, in float64"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "arXiv 2402.17263, LLaMA-2-7B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    minis: Annotated[int, Field(ge=1)] = 8
    """n, number of mini LoRAs; each has the recipe's rank (the authors: 8 of rank 1)."""

    def alpha(self, rank: int) -> float:
        return 16.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        if site.d % self.minis or site.k % self.minis:
            raise ValueError(
                f"melora: {self.minis} minis do not divide {site.d} outputs and {site.k} inputs: "
                f"set minis to a divisor of {math.gcd(site.d, site.k)}"
            )
        return MeloraAdapter(site, self.minis)


class MeloraAdapter(Delta):
    """A_minis (n, r, k/n) uniform in +-sqrt(n/k), which is Kaiming's rule for each; B_minis (n, d/n, r) zero."""

    def __init__(self, site: Site, n: int) -> None:
        super().__init__(site)
        self.A_minis = nn.Parameter(torch.empty(n, site.rank, site.k // n, dtype=site.dtype))
        self.B_minis = nn.Parameter(torch.zeros(n, site.d // n, site.rank, dtype=site.dtype))
        nn.init.uniform_(self.A_minis, -math.sqrt(n / site.k), math.sqrt(n / site.k))

    def delta_weight(self) -> Tensor:
        return self.site.scale * torch.block_diag(*(self.B_minis @ self.A_minis))

    def delta(self, x: Tensor) -> Tensor:
        thin = torch.einsum("...nc,nrc->...nr", x.unflatten(-1, (len(self.A_minis), -1)), self.A_minis)
        return self.site.scale * torch.einsum("...nr,nor->...no", thin, self.B_minis).flatten(-2)

    def factors(self) -> Factors:
        """The same as one pair of rank n r, zeros beside the blocks."""
        return Factors(torch.block_diag(*self.B_minis), torch.block_diag(*self.A_minis), self.site.scale)

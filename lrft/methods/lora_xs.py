"""LoRA-XS. Bałazy et al., 2024, arXiv 2405.17604. The released code starts R at noise of 1e-5; zero trains as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.svd import exact, leading


@dataclass(frozen=True)
class LoraXs(Method):
    """A small square matrix between the weight's own leading singular vectors, which stay frozen."""

    name: ClassVar[str] = "lora-xs"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2405.17604"
    equation: ClassVar[str] = "W + (alpha / r) B R A, B = U, A = S V'"
    parameters: ClassVar[str] = "r^2"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "init compared with the SVD of the weight by the released formula, in float64"
    learning_rate: ClassVar[float] = 4e-3
    rate_source: ClassVar[str] = "arXiv 2405.17604, Mistral-7B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    def alpha(self, rank: int) -> float:
        return float(rank)

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular vectors: lower rank {site.rank}")
        return LoraXsAdapter(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        decompose = exact if self.svd == "exact" else leading
        U, S, V = decompose(W0, adapter.site.rank)
        adapter.A.copy_(S[:, None] * V.T)
        adapter.B.copy_(U)


class LoraXsAdapter(Delta):
    """A (r, k) and B (d, r) frozen, set from the weight; R (r, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype), requires_grad=False)
        self.R = nn.Parameter(torch.zeros(site.rank, site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B @ self.R @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return linear(linear(self.site.scale * linear(x, self.A), self.R), self.B)

    def factors(self) -> Factors:
        return Factors(self.B @ self.R, self.A, self.site.scale)

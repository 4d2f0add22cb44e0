"""LoRA-FA. Zhang et al., 2023, arXiv 2308.03303; other frozen factors as in Zhu et al., 2024, arXiv 2402.16842.

The released code of the second paper takes columns of V' for its start `svd`; here the rows, the singular vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class LoraFa(Method):
    """LoRA with A frozen at its start: half the numbers to train, and no layer input kept for the backward pass."""

    name: ClassVar[str] = "lora-fa"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2308.03303, 2402.16842"
    equation: ClassVar[str] = "W + (alpha / r) B A, A frozen"
    parameters: ClassVar[str] = "r d (r k with frozen: B)"
    exports: ClassVar[str] = "PEFT LoRA (unchanged) or merged model"
    evidence: ClassVar[str] = "forward and corrected gradient compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: 3 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    init: Literal["kaiming", "orthonormal", "svd"] = "kaiming"
    """The frozen factor: uniform as in LoRA, random orthonormal rows, or leading singular vectors of the weight."""
    frozen: Literal["A", "B"] = "A"
    """B trains A instead, from zero: the mirror image, which the second paper finds to be worse."""
    corrected: bool = False
    """LoRA-FA's gradient: a step on B is then the full gradient's step, projected on the rows of A."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        width = site.k if self.frozen == "A" else site.d
        most = min(site.d, site.k) if self.init == "svd" else width
        if self.init != "kaiming" and site.rank > most:
            raise ValueError(f"lora-fa finds at most {most} {self.init} rows: lower rank {site.rank} or init: kaiming")
        rows = torch.empty(site.rank, width, dtype=site.dtype)
        if self.init == "orthonormal":
            rows = torch.linalg.qr(torch.randn(width, site.rank, dtype=site.dtype)).Q.T
        else:
            nn.init.kaiming_uniform_(rows, a=math.sqrt(5))
        return LoraFaAdapter(site, self.frozen, rows)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        if self.init == "svd":
            U, _, V = svd.leading(W0, adapter.site.rank)
            adapter.rows.copy_((V if self.frozen == "A" else U).T)

    @property
    def acts_between_passes(self) -> bool:
        return self.corrected

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for adapter in run.adapters.values() if self.corrected else ():
            for module in adapter.modules():
                if isinstance(module, LoraFaAdapter):
                    module.correct()


class LoraFaAdapter(Delta):
    """A (r, k) frozen and B (d, r) zero, or the other way round. rows (r, k or d) is the frozen one, B transposed."""

    def __init__(self, site: Site, frozen: str, rows: Tensor) -> None:
        super().__init__(site)
        zeros = torch.zeros(site.d if frozen == "A" else site.k, site.rank, dtype=site.dtype)
        A, B = (rows, zeros) if frozen == "A" else (zeros.T, rows.T)
        self.A = nn.Parameter(A.contiguous(), requires_grad=frozen == "B")
        self.B = nn.Parameter(B.contiguous(), requires_grad=frozen == "A")

    @property
    def rows(self) -> Tensor:
        return self.B.T if self.A.requires_grad else self.A

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return linear(self.site.scale * linear(x, self.A), self.B)

    def factors(self) -> Factors:
        return Factors(self.B, self.A, self.site.scale)

    def correct(self) -> None:
        """g <- g (s^2 A A')^-1 for B's gradient g; with B frozen, (s^2 B' B)^-1 g for A's."""
        trained = self.A if self.A.requires_grad else self.B
        if trained.grad is not None:
            g = trained.grad if trained is self.A else trained.grad.T
            gram = self.rows @ self.rows.T
            gram.diagonal().add_(1e-8)
            g.copy_(torch.linalg.solve(gram, g) / self.site.scale**2)

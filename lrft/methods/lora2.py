"""LoRA^2. Zhang et al., 2024, arXiv 2408.06854: dW = s B2 A2 diag(E) B1 A1, the two planes nested.

Starts and penalty are those of the released code, but for the inner two, B1 and A2: it holds the Gram matrix of their
longer side near I, which no rank below p can reach; here it is that of the shorter. Left out are its penalty between
the planes, which counts another term twice, and its pruning of E, which is AdaLoRA's: the rank stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class Lora2(Method):
    """Two low-rank planes, one inside the other, with a trained diagonal between them."""

    name: ClassVar[str] = "lora2"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2408.06854"
    equation: ClassVar[str] = "W + (alpha / r) B2 A2 diag(E) B1 A1; penalty mean |P P' - I|"
    parameters: ClassVar[str] = "p (d + k) + 2 r p + r, p the inner size"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "update and penalty compared with the released code; without its pruning"
    learning_rate: ClassVar[float] = 5e-3
    rate_source: ClassVar[str] = "ours: the paper's 8e-4 moves nothing within twenty steps"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    inner: Annotated[int, Field(ge=1)] = 8
    """p, the size of each plane; the update's rank is at most the smaller of p and the rank."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the mean distance of the four matrices from orthonormal ones, beside the token loss."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return Lora2Adapter(site, self.inner)

    @property
    def acts_between_passes(self) -> bool:
        return bool(self.orthogonality)

    def loss(self, run: Run) -> Tensor | None:
        if not self.orthogonality:
            return None
        found = [m for adapter in run.adapters.values() for m in adapter.modules() if isinstance(m, Lora2Adapter)]
        gaps = [gap(P) for m in found for P in (m.A1, m.B1, m.A2, m.B2)]
        return self.orthogonality * torch.stack(gaps).mean()


def gap(P: Tensor) -> Tensor:
    """|P P' - I| of a wide matrix, |P' P - I| of a tall one."""
    square = P @ P.T if len(P) <= P.shape[1] else P.T @ P
    return torch.linalg.matrix_norm(square - torch.eye(len(square), dtype=P.dtype, device=P.device))


class Lora2Adapter(Delta):
    """A1 (p, k), B1 (r, p), A2 (p, r), B2 (d, p) normal; E (r,) zero."""

    A1: Tensor
    B1: Tensor
    A2: Tensor
    B2: Tensor

    def __init__(self, site: Site, inner: int) -> None:
        super().__init__(site)
        shapes = {"A1": (inner, site.k), "B1": (site.rank, inner), "A2": (inner, site.rank), "B2": (site.d, inner)}
        for word, shape in shapes.items():
            self.register_parameter(word, nn.Parameter(0.02 * torch.randn(shape, dtype=site.dtype)))
        self.E = nn.Parameter(torch.zeros(site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B2 @ (self.A2 * self.E) @ self.B1 @ self.A1

    def delta(self, x: Tensor) -> Tensor:
        thin = linear(linear(x, self.A1), self.B1) * self.E
        return self.site.scale * linear(linear(thin, self.A2), self.B2)

    def factors(self) -> Factors:
        return Factors(self.B2 @ (self.A2 * self.E), self.B1 @ self.A1, self.site.scale)

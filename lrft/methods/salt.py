"""SALT. Elsayed et al., 2025, arXiv 2503.16055: the spectrum's top is scaled and shifted, the rest gets a LoRA.

    W' = U S' V',    S' = diag(relu(a sigma + b)) on the first n values, diag(sigma) + X Y on the others

The released code takes relu of all of S', which clips X Y too and moves the weight by half its norm in a random check;
only singular values can be meant. Starts are those of its second version, where Y is zero; its penalty, of weight zero
in the shipped configuration, is left out. U and V, from the full decomposition, are saved: up to twice as large as W.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Salt(Method):
    """Scales and shifts the leading singular values and adds a low-rank matrix between all other singular vectors."""

    name: ClassVar[str] = "salt"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2503.16055"
    equation: ClassVar[str] = "W + U1 diag(relu(a s + b) - s) V1' + U2 X Y V2', U and V the singular vectors of W"
    parameters: ClassVar[str] = "2 n + 2 r (m - n), m = min(d, k), n = ratio m"
    exports: ClassVar[str] = "PEFT LoRA of rank r + n, or merged model"
    evidence: ClassVar[str] = "weight compared with the released code where its relu does not clip"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the singular values that are scaled and shifted, at least one of them."""

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        top = max(1, int(self.ratio * most))
        if site.rank > most - top:
            raise ValueError(
                f"salt leaves {most - top} singular values of a {site.d} x {site.k} layer to the rank {site.rank}: "
                "lower rank or ratio"
            )
        return SaltAdapter(site, top)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        U, S, V = svd.exact(W0, min(W0.shape))
        adapter.U.copy_(U)
        adapter.V.copy_(V.T)
        adapter.sigma.copy_(S[: len(adapter.sigma)])


class SaltAdapter(Delta):
    """U (d, m), V (m, k), sigma (n,) frozen; a (n,) ones, b (n,) zero; X (m - n, r) uniform, Y (r, m - n) zero."""

    def __init__(self, site: Site, top: int) -> None:
        super().__init__(site)
        most = min(site.d, site.k)
        self.U = nn.Parameter(torch.zeros(site.d, most, dtype=site.dtype), requires_grad=False)
        self.V = nn.Parameter(torch.zeros(most, site.k, dtype=site.dtype), requires_grad=False)
        self.sigma = nn.Parameter(torch.ones(top, dtype=site.dtype), requires_grad=False)
        self.a = nn.Parameter(torch.ones(top, dtype=site.dtype))
        self.b = nn.Parameter(torch.zeros(top, dtype=site.dtype))
        self.X = nn.Parameter(torch.empty(most - top, site.rank, dtype=site.dtype))
        self.Y = nn.Parameter(torch.zeros(site.rank, most - top, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.X, a=math.sqrt(20))

    def change(self) -> Tensor:
        """Change of the leading singular values, (n,)."""
        return (self.a * self.sigma + self.b).relu() - self.sigma

    def delta_weight(self) -> Tensor:
        n = len(self.sigma)
        return (self.U[:, :n] * self.change()) @ self.V[:n] + self.U[:, n:] @ (self.X @ self.Y) @ self.V[n:]

    def factors(self) -> Factors:
        """Two thin matrices: folding U and V into them costs as much as r tokens' way through U and V."""
        n = len(self.sigma)
        B = torch.cat([self.U[:, :n] * self.change(), self.U[:, n:] @ self.X], dim=1)
        return Factors(B, torch.cat([self.V[:n], self.Y @ self.V[n:]]), 1.0)

    def delta(self, x: Tensor) -> Tensor:
        B, A, _ = self.factors()
        return linear(linear(x, A), B)

"""WaRA. Heidari et al., 2025, arXiv 2506.24092: a low-rank pair for each band of a wavelet transform. Reconstruction.

The paper's text has the update factorised in a wavelet domain, its figure the layer's input; its code was not to be
had. Here each of the four bands of a one-level Haar transform of the update, low and high along the outputs and along
the inputs, is a product of its own:
    dW = s sum over p, q in {low, high} of P_p' B_pq A_pq Q_q,    P and Q the transform's halves
`tied` is the figure's form, one pair for the bands low-low and high-high: dW = s (B A) kron I_2. An odd side is
treated as if one zero more belonged to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Wara(Method):
    """A pair of half-sized factors for each band of the update's wavelet transform."""

    name: ClassVar[str] = "wara"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2506.24092"
    equation: ClassVar[str] = "W + (alpha / r) sum over four bands of P' B A Q, P and Q of the Haar transform"
    parameters: ClassVar[str] = "2 r (d + k), tied r (d + k) / 2"
    exports: ClassVar[str] = "PEFT LoRA of rank 4 r, tied 2 r, or merged model"
    evidence: ClassVar[str] = "reconstruction"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is near"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    tied: bool = False
    """One pair for all bands: a quarter of the trained parameters and half of the rank."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return WaraAdapter(site, 1 if self.tied else 4)


# The bands of the outputs and of the inputs that the pairs belong to: 1 low, -1 high, the sign of the second of two.
OUTPUTS, INPUTS = (1, 1, -1, -1), (1, -1, 1, -1)


class WaraAdapter(Delta):
    """A (n, r, k/2) uniform in +-1/sqrt(k/2), B (n, d/2, r) zero, for n pairs."""

    def __init__(self, site: Site, pairs: int) -> None:
        super().__init__(site)
        half_d, half_k = (site.d + 1) // 2, (site.k + 1) // 2
        self.A = nn.Parameter(torch.empty(pairs, site.rank, half_k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(pairs, half_d, site.rank, dtype=site.dtype))
        bound = 1 / math.sqrt(half_k)
        nn.init.uniform_(self.A, -bound, bound)

    def factors(self) -> Factors:
        """The pairs in the layer's own coordinates, B (d, n r) and A (n r, k); a tied pair belongs to two bands."""
        own = len(self.A) > 1
        outputs, inputs = (OUTPUTS, INPUTS) if own else ((1, -1), (1, -1))
        A = torch.stack([unfolded(self.A[i if own else 0], sign) for i, sign in enumerate(inputs)])
        B = torch.stack([unfolded(self.B[i if own else 0].T, sign) for i, sign in enumerate(outputs)])
        return Factors(B.flatten(0, 1).T[: self.site.d], A.flatten(0, 1)[:, : self.site.k], self.site.scale)

    def delta_weight(self) -> Tensor:
        B, A, s = self.factors()
        return s * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, s = self.factors()
        return s * linear(linear(x, A), B)


def unfolded(rows: Tensor, sign: int) -> Tensor:
    """Each of `rows` (r, n) by one half of the inverse Haar transform, (r, 2 n): sums of pairs, or differences."""
    return torch.stack([rows, sign * rows], dim=-1).flatten(-2) / math.sqrt(2)

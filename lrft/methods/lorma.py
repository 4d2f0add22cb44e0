"""LoRMA, low-rank multiplicative adaptation. Bihany et al., 2025, arXiv 2506.07621.

    plus    W' = (I + s B A) W          or W (I + s B A) on the inputs' side
    pi      W' = s shift(B A) W         or W s shift(B A)

with shift(M)[i, j] = M[i, j - i mod n]: the rows of a thin product, turned so that they give a full rank. Where the
released code leaves the factor s out (plus on the inputs' side), this file follows the paper's formula.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.model import fused_linear
from lrft.model.linear import dtype, product


@dataclass(frozen=True)
class Lorma(Method):
    """Multiplies the weight by the identity plus two thin matrices, or by a full-rank matrix made from them."""

    name: ClassVar[str] = "lorma"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2506.07621"
    equation: ClassVar[str] = "(I + s B A) W, or s shift(B A) W"
    parameters: ClassVar[str] = "2 r d, or 2 r k on the inputs' side"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "dense reference of the formula, in float64"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "arXiv 2506.07621, LLaMA-3-8B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    variant: Literal["plus", "pi"] = "plus"
    """plus changes the weight by a matrix of rank r; pi has a full rank and takes r Fourier transforms per token."""
    side: Literal["outputs", "inputs"] = "outputs"
    """Whether the outputs of the weight are mixed, or its inputs (for pi at the cost of a second product with W)."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Adapter:
        n = site.d if self.side == "outputs" else site.k
        return (PlusAdapter if self.variant == "plus" else PiAdapter)(site, n, self.side == "outputs")


class PlusAdapter(Adapter):
    """A (r, n) by Kaiming's rule with a = sqrt(5); B (n, r) zero."""

    def __init__(self, site: Site, n: int, on_outputs: bool) -> None:
        super().__init__(site)
        self.on_outputs = on_outputs
        self.A = nn.Parameter(torch.empty(site.rank, n, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(n, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def weight(self, W0: Tensor) -> Tensor:
        change = self.B @ (self.A @ W0) if self.on_outputs else (W0 @ self.B) @ self.A
        return W0 + self.site.scale * change

    def forward(self, x: Tensor, base: Any) -> Tensor:
        if self.on_outputs:
            h = product(base, x)
            out = h + self.site.scale * linear(linear(self.cast(h), self.A), self.B).to(h.dtype)
            return (out if base.bias is None else out + base.bias).to(h.dtype)
        # W (x + s B A x), the sum rounded to bfloat16, would lose a change that is small: W B is made instead.
        WB = product(base, self.B.T.to(dtype(base))).T
        if fused_linear.is_plain(base) and (
            torch.is_autocast_enabled(x.device.type) or x.dtype == WB.dtype == self.B.dtype
        ):
            return fused_linear.linear_plus_pair(x, x, *fused_linear.parts_of(base), WB, self.A, self.site.scale)
        y = base(x)
        return y + self.site.scale * linear(linear(self.cast(x), self.A), WB.to(self.B.dtype)).to(y.dtype)


class PiAdapter(Adapter):
    """B (n, r) by Kaiming's rule, its first column one; A (r, n) one at [0, 0], else zero; both over sqrt(s).

    So s shift(B A) starts as the identity.
    """

    def __init__(self, site: Site, n: int, on_outputs: bool) -> None:
        super().__init__(site)
        self.on_outputs = on_outputs
        root = math.sqrt(site.scale)
        self.A = nn.Parameter(torch.zeros(site.rank, n, dtype=site.dtype))
        self.B = nn.Parameter(torch.empty(n, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))
        with torch.no_grad():
            self.B[:, 0] = 1
            self.A[0, 0] = 1 / root
            self.B.div_(root)

    def weight(self, W0: Tensor) -> Tensor:
        at = torch.arange(len(self.B), device=W0.device)
        S = self.site.scale * (self.B @ self.A).gather(1, (at - at[:, None]) % len(at))
        return S @ W0 if self.on_outputs else W0 @ S

    def forward(self, x: Tensor, base: Any) -> Tensor:
        if self.on_outputs:
            h = product(base, x)
            out = h + self.change(h)
            return (out if base.bias is None else out + base.bias).to(h.dtype)
        y = base(x)
        return y + product(base, self.change(x)).to(y.dtype)

    def change(self, v: Tensor) -> Tensor:
        """(s shift(B A) - I) v for v (..., n): sums of circular correlations with the rows of A."""
        with torch.autocast(v.device.type, enabled=False):  # Fourier transforms of bfloat16 do not exist
            wide = v.to(self.A.dtype)
            waves, rows = torch.fft.rfft(wide), torch.fft.rfft(self.A).conj()
            terms = (b * torch.fft.irfft(waves * row, n=v.shape[-1]) for row, b in zip(rows, self.B.T, strict=True))
            return (self.site.scale * sum(terms) - wide).to(v.dtype)

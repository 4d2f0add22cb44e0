"""DCFT, deconvolution in subspace. Zhang et al., 2025, arXiv 2503.01419.

A product of rank one, (k / c, d / c), is enlarged by a transposed convolution with a kernel C (c, c) and a stride of c.
The copies of C do not overlap, so the update is a Kronecker product, here the same for square and other layers (the
released merge forgets to transpose):

    dW = s (b a) x C',    a (1, k / c), b (d / c, 1)
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
class Dcft(Method):
    """A product of rank one, enlarged by one small kernel: an update of the kernel's rank. `rank` has no effect."""

    name: ClassVar[str] = "dcft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2503.01419"
    equation: ClassVar[str] = "W + alpha kron(b a, C')"
    parameters: ClassVar[str] = "(d + k) / c + c^2, c = kernel"
    exports: ClassVar[str] = "PEFT LoRA of rank c, or merged model"
    evidence: ClassVar[str] = "dense reference of the formula, in float64"
    learning_rate: ClassVar[float] = 1e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: 3 to 10 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    kernel: Annotated[int, Field(ge=1)] = 2
    """Side c of the kernel: it divides the layer's inputs and outputs. 2 in the released code."""

    def alpha(self, rank: int) -> float:
        return 32.0  # in the released scripts

    def scale(self, alpha: float, rank: int) -> float:
        return alpha  # over the rank of the product that is enlarged, which is one

    def build(self, site: Site) -> Delta:
        if site.d % self.kernel or site.k % self.kernel:
            raise ValueError(
                f"dcft's kernel {self.kernel} does not divide {site.d} outputs and {site.k} inputs: "
                f"use a divisor of {math.gcd(site.d, site.k)}"
            )
        return DcftAdapter(site, self.kernel)


class DcftAdapter(Delta):
    """a (1, k / c) and C (c, c) normal with deviation 0.02 as released; b (d / c, 1) zero, so that dW is."""

    def __init__(self, site: Site, kernel: int) -> None:
        super().__init__(site)
        self.a = nn.Parameter(0.02 * torch.randn(1, site.k // kernel, dtype=site.dtype))
        self.b = nn.Parameter(torch.zeros(site.d // kernel, 1, dtype=site.dtype))
        self.C = nn.Parameter(0.02 * torch.randn(kernel, kernel, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * torch.kron(self.b @ self.a, self.C.T.contiguous())

    def delta(self, x: Tensor) -> Tensor:
        blocks = x.unflatten(-1, (-1, len(self.C)))
        enlarged = (self.a @ blocks) @ self.C
        return self.site.scale * (self.b * enlarged).flatten(-2)

    def factors(self) -> Factors:
        """kron(b a, C') = kron(b, C') kron(a, I)."""
        eye = torch.eye(len(self.C), dtype=self.C.dtype, device=self.C.device)
        return Factors(torch.kron(self.b, self.C.T.contiguous()), torch.kron(self.a, eye), self.site.scale)

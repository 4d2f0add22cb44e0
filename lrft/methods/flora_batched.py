"""FLoRA, fast LoRA for batches. Wen, Chaudhuri, 2023, arXiv 2312.05677. (Not Flora, arXiv 2402.03293.)

    W' = W o (B A) / r,    W' x = 1/r sum_i b_i o W (a_i o x),    a_i = row i of A (r, k), b_i = column i of B (d, r)

The paper gives each example of a batch its own A and B; here all examples share those of the one adapter. No code is
published and no start is stated. Here A and B are a start, for which W' = W, plus what is trained: weight decay pulls
towards the base.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.model import fused_linear
from lrft.model.linear import product


@dataclass(frozen=True)
class FloraBatched(Method):
    """Multiplies the weight entry by entry by a product of two thin matrices. Each rank costs a product with W."""

    name: ClassVar[str] = "flora-batched"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2312.05677"
    equation: ClassVar[str] = "W o (B A) / r, o entry by entry"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "dense reference of the paper's formula; the init is a reconstruction"
    learning_rate: ClassVar[float] = 8e-3
    rate_source: ClassVar[str] = "arXiv 2312.05677, StarCoder-15B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    def build(self, site: Site) -> Adapter:
        return FloraAdapter(site)


class FloraAdapter(Adapter):
    """A (r, k), B (d, r): distances from a first row of ones and a first column of r. Only A's other rows are not 0."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        with torch.no_grad():
            self.A[0] = 0

    def masks(self) -> tuple[Tensor, Tensor]:
        """A (r, k) and B (d, r) of the formula."""
        first = (torch.arange(len(self.A), device=self.A.device) == 0).to(self.A.dtype)
        return self.A + first[:, None], self.B + len(self.A) * first

    def weight(self, W0: Tensor) -> Tensor:
        A, B = self.masks()
        return W0 * (B @ A) / len(A)

    def change(self, W0: Tensor) -> Tensor:
        return self.weight(W0) - W0

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """By the formula each rank costs a product with W. Where W' loses nothing it is made, which costs one more."""
        if fused_linear.is_plain(base) and fused_linear.is_wide(x) and x.dtype == base.weight.dtype == self.site.dtype:
            W, bias = fused_linear.parts_of(base)
            return fused_linear.linear_plus_made(x, W, bias, partial(self.change, W), [self.A, self.B])
        A, B = self.masks()
        images = product(base, (self.cast(x)[..., None, :] * A).to(x.dtype))  # (..., r, d)
        out = (images * B.T).sum(dim=-2) / len(A)
        return (out if base.bias is None else out + base.bias).to(images.dtype)

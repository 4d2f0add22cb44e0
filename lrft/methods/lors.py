"""LoRS. Hu et al., 2025, arXiv 2501.08582: LoRA over a pruned base whose zeros stay zero.

    W' = (W + s B A) o (W != 0),    o entry by entry

The masked product is made again for the backward pass and not kept. With `gradient: released` the gradients of A and B
are those of the released code, without the mask and the factor s: no product as large as W is needed for them, and they
are not the slope of the loss (on a half-pruned layer the cosine between both is about 0.75). The paper's start from the
gradient's singular vectors is left out: A and B start as LoRA's.
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
from lrft.model.linear import rows


@dataclass(frozen=True)
class Lors(Method):
    """LoRA that leaves every zero of a pruned weight zero; over a dense weight it is LoRA."""

    name: ClassVar[str] = "lors"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2501.08582"
    equation: ClassVar[str] = "(W + (alpha / r) B A) o (W != 0), o entry by entry"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "output and gradients compared with the released code"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    quantization_conflict: ClassVar[str] = "preserves the zeros of a pruned weight, which quantisation changes"

    gradient: Literal["exact", "released"] = "exact"
    """Gradients of A and B; released: without the mask and the factor, cheaper and not the loss's own."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Adapter:
        return LorsAdapter(site, self.gradient)


class LorsAdapter(Adapter):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) zero."""

    def __init__(self, site: Site, gradient: str) -> None:
        super().__init__(site)
        self.gradient = gradient
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + self.site.scale * (self.B @ self.A) * (W0 != 0)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        W = rows(base)

        def update(seen: Tensor) -> Tensor:
            if self.gradient == "exact":
                return linear(seen, self.site.scale * (self.B @ self.A) * (W != 0))
            B, A = self.B.to(seen.dtype), self.A.to(seen.dtype)  # a product of its own knows no autocast
            product: Tensor = Released.apply(seen, W, B, A, self.site.scale)
            return product

        same = x.dtype == W.dtype == self.site.dtype
        if fused_linear.is_plain(base) and (same or torch.is_autocast_enabled(x.device.type)):
            return fused_linear.linear_plus(x, *fused_linear.parts_of(base), update, [self.A, self.B])
        y: Tensor = base(x)
        return y + update(self.cast(x)).to(y.dtype)


class Released(torch.autograd.Function):
    """s ((B A) o (W != 0)) x for x (..., k): exact by x; by B and A the slope of B A x, as released."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, B: Tensor, A: Tensor, s: float) -> Tensor:
        ctx.save_for_backward(x, W, B, A)
        ctx.s = s
        return linear(x, s * (B @ A) * (W != 0))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, W, B, A = ctx.saved_tensors
        seen, g = x.flatten(0, -2), slope.flatten(0, -2)
        of_x = slope @ (ctx.s * (B @ A) * (W != 0)) if ctx.needs_input_grad[0] else None
        return of_x, None, g.T @ (seen @ A.T), (g @ B).T @ seen, None

"""ALLoRA. Huang, Balestriero, 2024, arXiv 2410.09692, section 4.2. A reconstruction: the authors released no code.

    c_i = 1 / sqrt(|(B A)_i| + 1 / eta^2),    |(B A)_i| the norm of row i of the update, D the gradient by its output

The gradients of A and B are those of a LoRA whose D is multiplied with c, row by row; what is handed on to the layers
below is not. At B = 0 every c is eta. There is no factor alpha / r and no dropout. Under Adam, which divides by the
size of a gradient, c acts on A by how it weighs the rows, and on B only as far as it changes during the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Delta, PeftForm
from lrft.adapters.pairs import refuse_factor
from lrft.adapters.part import Part


@dataclass(frozen=True)
class Allora(Part):
    """Slows the rows of the update down as they grow, in place of a factor and of dropout."""

    name: ClassVar[str] = "allora"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2410.09692"
    equation: ClassVar[str] = "gradients of A and B from diag(c) D, c_i = 1 / sqrt(|(B A)_i| + 1 / eta^2)"
    evidence: ClassVar[str] = "dense reference of the paper's formula; no released code"
    slots: ClassVar[tuple[str, ...]] = ("pair-gradient", "forward")
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    conflicts: ClassVar[tuple[str, ...]] = ("scale", "pair-rates", "magnitude", "init")
    natural_scale: ClassVar[float | None] = 1.0

    eta: Annotated[float, Field(gt=0)] = 8.0
    """Gradient amplification where the update is zero. The paper tries 1 to 32; default chosen by lrft."""

    @property
    def acts_between_passes(self) -> bool:
        return False  # the rule is in the backward pass

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{adapter.site.name}: allora requires an additive update")
        refuse_factor(self.name, adapter)
        return RowRates(adapter, self.eta)


class RowRates(Adapter):
    """`inner` with another backward pass."""

    def __init__(self, inner: Delta, eta: float) -> None:
        super().__init__(inner.site)
        self.inner, self.eta = inner, eta

    def weight(self, W0: Tensor) -> Tensor:
        return self.inner.weight(W0)

    def peft(self) -> PeftForm | None:
        return self.inner.peft()

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        factors = self.inner.factors()
        if factors is None:
            raise TypeError(f"{self.site.name}: the update has no factors")
        B, A, s = factors
        y, x = base(x), self.cast(x)
        out = s * linear(linear(x, A.detach()), B.detach())
        if torch.is_grad_enabled():
            # Adds nothing, and hands to the factors alone what D diag(c) has for them.
            scaled = s * linear(linear(x.detach(), A), self.rates(B, A)[:, None] * B)
            out = out + (scaled - scaled.detach())
        return y + out.to(y.dtype)

    @torch.no_grad()
    def rates(self, B: Tensor, A: Tensor) -> Tensor:
        """c (d,). The norms of the rows of B A come from the product A A' (r, r)."""
        with torch.autocast(A.device.type, enabled=False):
            squares = ((B @ (A @ A.T)) * B).sum(dim=1).clamp_min(0)
        return (squares.sqrt() + self.eta**-2).rsqrt()

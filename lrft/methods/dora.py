"""DoRA, weight-decomposed adaptation. Liu et al., 2024, arXiv 2402.09353, equations 5 and 11.

The paper speaks of column norms; the authors' code and PEFT take one norm per output row, and so does this file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Delta, PeftForm
from lrft.adapters.part import Part
from lrft.model import fused_linear
from lrft.model.linear import dense, product


@dataclass(frozen=True)
class Dora(Part):
    """Trains the length of each output row apart from its direction, over any method that adds to the weight."""

    name: ClassVar[str] = "dora"
    kind: ClassVar[str] = "wrapper"
    paper: ClassVar[str] = "arXiv 2402.09353"
    equation: ClassVar[str] = "m (W + dW) / |W + dW|, norms by output row, without their gradient"
    parameters: ClassVar[str] = "those of the method + d"
    exports: ClassVar[str] = "PEFT DoRA over a LoRA, or merged model"
    evidence: ClassVar[str] = "forward, merge and exported file compared with PEFT 0.21"
    slots: ClassVar[tuple[str, ...]] = ("magnitude",)
    requires: ClassVar[tuple[str, ...]] = ("delta",)

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise ValueError("dora needs a method that adds to the weight")
        return DoraAdapter(adapter, W0)


class DoraAdapter(Adapter):
    """magnitude (d,) starts at the row norms of W."""

    row_squares: Tensor

    def __init__(self, inner: Delta, W0: Tensor | None) -> None:
        super().__init__(inner.site)
        self.inner = inner
        squares = torch.zeros(inner.site.d, dtype=inner.site.dtype) if W0 is None else (W0 * W0).sum(dim=1)
        self.register_buffer("row_squares", squares, persistent=False)
        self.magnitude = nn.Parameter(squares.sqrt())
        self.kept: tuple[tuple[int, ...], Tensor] | None = None

    def weight(self, W0: Tensor) -> Tensor:
        V = W0 + self.inner.delta_weight()
        return self.gain((V * V).sum(dim=1).sqrt())[:, None] * V

    def forward(self, x: Tensor, base: Any) -> Tensor:
        gain = self.gain(self.norms(base))
        dropped = self.inner.drop(x)
        if dropped is x:
            straight = self.straight(x, base)
            out = gain * straight
        else:  # as in the authors' code: what the magnitude adds to the base's part sees the dropped input too
            straight = product(base, x)
            update = self.inner.delta(self.cast(dropped)).to(straight.dtype)
            out = straight + (gain - 1) * product(base, dropped) + gain * update
        return (out if base.bias is None else out + base.bias).to(straight.dtype)

    def straight(self, x: Tensor, base: nn.Module) -> Tensor:
        """V x for x (..., k)."""
        if self.inner.is_fast(x, base):
            W, _ = fused_linear.parts_of(base)
            fused = self.inner.by_factors(x, x, W, None)
            if fused is not None:
                return fused
        y = product(base, x)
        return y + self.inner.delta(self.cast(x)).to(y.dtype)

    def gain(self, norms: Tensor) -> Tensor:
        """m / |V| (d,); 1 for a row of zeros, which has no direction."""
        one = torch.ones_like(norms)
        # Divided by one where the norm is zero: an infinite quotient's gradient is NaN even where it is not chosen.
        return torch.where(norms > 0, self.magnitude / torch.where(norms > 0, norms, one), one)

    def norms(self, base: nn.Module) -> Tensor:
        """Row norms of V = W + dW (d,), kept until a tensor of the update is written to.

        A compiled graph makes them in each pass: one that asks for versions would be compiled again in each step.
        """
        if torch.compiler.is_compiling():
            return self.measured_norms(base)
        written = tuple(p._version for p in self.inner.read_from())
        if self.kept is None or self.kept[0] != written or self.kept[1].device != self.magnitude.device:
            self.kept = written, self.measured_norms(base)
        return self.kept[1]

    @torch.no_grad()
    def measured_norms(self, base: nn.Module) -> Tensor:
        """Row norms of V = W + dW (d,), constants to the gradient (section 4.3).

        With factors, |V|^2 = |W|^2 + 2 s (W A') * B + s^2 (B A A') * B summed over r: no (d, k) matrix is made.
        """
        with torch.autocast(self.magnitude.device.type, enabled=False):
            factors = self.inner.factors()
            if factors is None:
                V = dense(base) + self.inner.delta_weight()
                return (V * V).sum(dim=1).sqrt()
            B, A, s = factors
            cross = ((dense(base) @ A.T) * B).sum(dim=1)
            square = ((B @ (A @ A.T)) * B).sum(dim=1)
            return (self.row_squares + 2 * s * cross + s * s * square).clamp_min(0).sqrt()

    def peft(self) -> PeftForm | None:
        inner = self.inner.peft()
        return None if inner is None else inner._replace(magnitude=self.magnitude)

"""VeLoRA. Miles et al., 2024, arXiv 2405.17991, section 3; directions and defaults as in PEFT.

For the gradient of A only a projection of the input is kept: x is cut into groups of g = k / groups numbers, and of
each group x_i its product with one direction v (g,), |v| = 1, that all tokens and groups have in common.

    kept: c_i = x_i v,    gradient of A: slope' [c_1 v', c_2 v', ...] * scale,    all else as in a LoRA

By default v is the normalised mean over the groups of the pass at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from lrft.adapters.adapter import Adapter, Delta, PeftForm
from lrft.adapters.part import Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Velora(Part):
    """Keeps one number for each group of inputs for the backward pass: less memory, and a rough gradient of A."""

    name: ClassVar[str] = "velora"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2405.17991"
    equation: ClassVar[str] = "dL/dA = (dL/d(A x))' x~, x~ = (x_i v) v' of each group x_i of inputs"
    evidence: ClassVar[str] = "gradients compared with PEFT 0.21"
    slots: ClassVar[tuple[str, ...]] = ("forward",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    groups: Annotated[int, Field(ge=1)] = 64
    """Groups of a layer's inputs: as many numbers are kept of each token. The last group may be shorter."""
    direction: Literal["mean", "random"] = "mean"
    """mean: of the groups of each pass; random: one that stays."""
    gradient_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the gradient of A."""

    @property
    def acts_between_passes(self) -> bool:
        return False  # it changes what a pass keeps

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta) or adapter.factors() is None:
            raise ValueError("velora conflicts with a part that changes more than A and B (dora)")
        return CompressedAdapter(
            adapter, min(self.groups, adapter.site.k), self.direction == "random", self.gradient_scale
        )


class CompressedAdapter(Adapter):
    """`inner`, whose input is kept by its projections. direction (g,): the random one, or None."""

    direction: Tensor | None

    def __init__(self, inner: Delta, groups: int, random: bool, scale: float) -> None:
        super().__init__(inner.site)
        self.inner, self.groups, self.scale = inner, groups, scale
        generator = torch.Generator().manual_seed(seed_of(0, "velora", inner.site.name))
        drawn = torch.randn(-(-inner.site.k // groups), generator=generator, dtype=inner.site.dtype)
        self.register_buffer("direction", unit(drawn) if random else None, persistent=False)

    def weight(self, W0: Tensor) -> Tensor:
        return self.inner.weight(W0)

    def peft(self) -> PeftForm | None:
        return self.inner.peft()

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        factors = self.inner.factors()
        if factors is None or not self.training or not torch.is_grad_enabled():
            found: Tensor = self.inner(x, base)
            return found
        y, seen = base(x), self.cast(self.inner.drop(x))
        v = unit(grouped(seen.detach(), self.groups).mean(dim=0)) if self.direction is None else self.direction
        B, A, s = factors
        return y + (s * linear(Compressed.apply(seen, A, v, self.groups, self.scale), B)).to(y.dtype)


class Compressed(torch.autograd.Function):
    """A x for x (..., k), of which `groups` numbers are kept of each token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, v: Tensor, groups: int, scale: float) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            codes = (grouped(x, groups) @ v.to(x.dtype)).view(-1, groups)
        ctx.save_for_backward(codes, A, v)
        ctx.scale, ctx.dtype = scale, x.dtype
        return linear(x, A)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        codes, A, v = ctx.saved_tensors
        back = (slope @ A.to(slope.dtype)).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        rows = slope.flatten(0, -2)
        # The sum over the tokens comes before the direction: x~ is never made.
        thin = rows.T @ codes.to(rows.dtype)
        full = (thin[:, :, None] * v.to(rows.dtype)).flatten(1)[:, : A.shape[1]]
        return back, (ctx.scale * full).to(A.dtype), None, None, None


def grouped(x: Tensor, groups: int) -> Tensor:
    """(tokens * groups, g) from x (..., k), filled up with zeros where `groups` does not divide k."""
    size = -(-x.shape[-1] // groups)
    return pad(x, (0, groups * size - x.shape[-1])).reshape(-1, size)


def unit(v: Tensor) -> Tensor:
    """v at unit length, and the mean direction where v is zero."""
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    length = wide.norm()
    return torch.where(length == 0, torch.full_like(wide, len(v) ** -0.5), wide / length)

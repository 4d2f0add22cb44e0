"""MoRA. Jiang et al., 2024, arXiv 2405.12130, sections 3 and 4; the operators as released by the authors.

    y = W x + decompress(M compress(x)),    M (R, R),  R = round(sqrt((d + k) r))

R is chosen so that M has as many numbers as a LoRA of rank r. The operators, by the released code's numbers:

    type  inputs to R               R to outputs              paper
    1     every R-th summed         tiled                     eq. 6, the choice for high ranks
    2     neighbours summed         each repeated in place    eq. 6
    3     neighbours summed         tiled
    4     every R-th summed         each repeated in place
    6     blocks of R, rotated      blocks laid end to end    eq. 9, the choice for low ranks
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method

# The paper rotates at r = 8 and shares at r = 128 and 256; between them nothing is reported. Saved adapters that say
# `auto` mean this number: it can never change.
ROTATION_UP_TO_RANK = 32


@dataclass(frozen=True)
class Mora(Method):
    """One square matrix between fixed compress and expand maps: a high-rank update for a low-rank budget."""

    name: ClassVar[str] = "mora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2405.12130"
    equation: ClassVar[str] = "W x + decompress(M compress(x))"
    parameters: ClassVar[str] = "R^2, R = round(sqrt(r (d + k)))"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "update compared with dense matrices by the released formulas, all types, in float64"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "the released recipe for MetaMathQA, type 6"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "redrawable")

    type: Literal["auto", 1, 2, 3, 4, 6] = "auto"
    """The operator. auto rotates blocks (6) up to rank 32 and shares rows and columns (1) above."""
    switch: Literal[0, 2, 4] = 0
    """With restarts (ReMoRA): each takes the next of so many sharing operators, 1, 2, ..., and around. 0: none does."""

    def build(self, site: Site) -> Delta:
        operator = self.type
        if operator == "auto":
            operator = 6 if site.rank <= ROTATION_UP_TO_RANK and not self.switch else 1
        if operator == 6 and self.switch:
            raise ValueError("mora switches between types 1 to 4: leave type 6 out, or switch")
        side = math.floor(math.sqrt((site.d + site.k) * site.rank) + 0.5)
        if operator == 6:
            side -= side % 2
        if side < 1 or side > 2 * site.k:
            raise ValueError(
                f"mora's matrix would be {side} x {side} for {site.k} inputs; its side must be 1 to {2 * site.k}: "
                f"change rank {site.rank}"
            )
        if self.switch:
            return SwitchingAdapter(site, side, operator)
        return RotationAdapter(site, side) if operator == 6 else SharingAdapter(site, side, operator)

    def rebuild(self, site: Site, restart: int) -> Delta:
        adapter = self.build(site)
        if isinstance(adapter, SwitchingAdapter):
            first = int(adapter.operator) - 1
            with torch.no_grad():
                adapter.operator.fill_(1 + (first + restart) % self.switch)
        return adapter


class SharingAdapter(Delta):
    """Types 1 to 4: inputs are summed into R groups, M mixes the groups, outputs share the results."""

    group_of_output: Tensor

    def __init__(self, site: Site, side: int, operator: int) -> None:
        super().__init__(site)
        self.M = nn.Parameter(torch.zeros(side, side, dtype=site.dtype))
        self.strided_input = operator in (1, 4)
        outputs = torch.arange(site.d)
        groups = outputs % side if operator in (1, 3) else contiguous_groups(site.d, side)
        self.register_buffer("group_of_output", groups, persistent=False)

    def delta(self, x: Tensor) -> Tensor:
        side = self.M.shape[0]
        groups = strided_sum(x, side) if self.strided_input else contiguous_sum(x, side)
        return linear(groups, self.M).index_select(-1, self.group_of_output)


class SwitchingAdapter(Delta):
    """Types 1 to 4, whichever `operator` () says: it is saved with M, which means nothing without it."""

    def __init__(self, site: Site, side: int, operator: int) -> None:
        super().__init__(site)
        self.M = nn.Parameter(torch.zeros(side, side, dtype=site.dtype))
        self.operator = nn.Parameter(torch.tensor(float(operator), dtype=site.dtype), requires_grad=False)

    def delta(self, x: Tensor) -> Tensor:
        side, operator = self.M.shape[0], int(self.operator)
        groups = strided_sum(x, side) if operator in (1, 4) else contiguous_sum(x, side)
        y = linear(groups, self.M)
        if operator in (1, 3):
            return y[..., torch.arange(self.site.d, device=x.device) % side]
        return y[..., contiguous_groups(self.site.d, side).to(x.device)]


class RotationAdapter(Delta):
    """Type 6: each block of R inputs is rotated by its own angle (as in RoPE, halves paired) before M."""

    cos: Tensor
    sin: Tensor

    def __init__(self, site: Site, side: int) -> None:
        super().__init__(site)
        self.M = nn.Parameter(torch.zeros(side, side, dtype=site.dtype))
        all_blocks = math.ceil(site.k / side)
        # Blocks beyond the last output are never read: leave them out. (The released code computes them all.)
        self.blocks = min(all_blocks, math.ceil(site.d / side))
        half = side // 2
        theta = 10000.0 ** (-2.0 * torch.arange(half, dtype=torch.float64) / side)
        angle = torch.arange(self.blocks, dtype=torch.float64)[:, None] * theta
        self.register_buffer("cos", angle.cos().to(site.dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(site.dtype), persistent=False)

    def delta(self, x: Tensor) -> Tensor:
        side, d = self.M.shape[0], self.site.d
        left, right = wrapped(x, self.blocks * side).unflatten(-1, (self.blocks, side)).chunk(2, dim=-1)
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        rotated = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
        y = linear(rotated, self.M).flatten(-2)
        if y.shape[-1] < d:  # more outputs than blocks: the blocks start over
            y = y.repeat(*[1] * (y.ndim - 1), math.ceil(d / y.shape[-1]))
        return y[..., :d]


def wrapped(x: Tensor, length: int) -> Tensor:
    """x (..., k) cut to `length`, or continued with its own first entries (not zeros) up to it; length <= 2k."""
    k = x.shape[-1]
    return x[..., :length] if length <= k else torch.cat([x, x[..., : length - k]], dim=-1)


def strided_sum(x: Tensor, side: int) -> Tensor:
    """(..., k) -> (..., R): z[j] = x[j] + x[j + R] + x[j + 2R] + ..., wrapping around at the end."""
    blocks = math.ceil(x.shape[-1] / side)
    return wrapped(x, blocks * side).unflatten(-1, (blocks, side)).sum(dim=-2)


def contiguous_sum(x: Tensor, side: int) -> Tensor:
    """(..., k) -> (..., R): sums of k // R neighbours, one more in each of the first k % R groups."""
    size, longer = divmod(x.shape[-1], side)
    if size == 0:
        return pad(x, (0, side - x.shape[-1]))
    head = x[..., : longer * (size + 1)].unflatten(-1, (longer, size + 1)).sum(dim=-1)
    tail = x[..., longer * (size + 1) :].unflatten(-1, (side - longer, size)).sum(dim=-1)
    return torch.cat([head, tail], dim=-1)


def contiguous_groups(n: int, side: int) -> Tensor:
    """The group (n,) of each of n entries under the split of `contiguous_sum`."""
    size, longer = divmod(n, side)
    sizes = torch.full((side,), size)
    sizes[:longer] += 1
    return torch.repeat_interleave(torch.arange(side), sizes, output_size=n)

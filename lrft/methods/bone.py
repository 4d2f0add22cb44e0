"""Bone, block affine. Kang, Yin, 2024, arXiv 2409.15371, first version; as in PEFT's `miss` with "bat".

The weight is cut into square blocks of side b, the rank. All blocks of one row of blocks share one matrix D_i (b, b):

    W[i, j] -> W[i, j] (I + D_i) + D_i
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType, spread
from lrft.model.linear import rows


@dataclass(frozen=True)
class Bone(Method):
    """One small square matrix for each row of blocks, which multiplies its blocks and is added to them."""

    name: ClassVar[str] = "bone"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.15371"
    equation: ClassVar[str] = "W_ij + W_ij D_i + D_i, blocks of r x r"
    parameters: ClassVar[str] = "r d"
    exports: ClassVar[str] = "PEFT MISS, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "MISS"
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)

    block: Annotated[int, Field(ge=0)] = 0
    """Block size, which must divide the layer's inputs and outputs; 0 uses the rank."""

    @classmethod
    def in_peft(cls) -> BoneType:
        return BoneType(
            "MISS",
            BoneAdapter,
            {"D": Named("miss_block", "nbc")},
            fixed={"init_weights": ("bat",)},
            training=("mini_r",),
        )

    def build(self, site: Site) -> Adapter:
        side = self.block or site.rank
        if site.d % side or site.k % side:
            raise ValueError(
                f"bone: block size {side} does not divide {site.d} outputs and {site.k} inputs: "
                f"set the rank, or block, to a divisor of {math.gcd(site.d, site.k)}"
            )
        return BoneAdapter(site, side)


class BoneAdapter(Adapter):
    """D (d/b, b, b) zero."""

    def __init__(self, site: Site, side: int) -> None:
        super().__init__(site)
        self.D = nn.Parameter(torch.zeros(site.d // side, side, side, dtype=site.dtype))

    def weight(self, W0: Tensor) -> Tensor:
        return affine(W0, self.D)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else self.site.dtype
        y = _Product.apply(x, base, self.D, dtype)
        y = y if base.bias is None else y + base.bias
        return y.to(dtype if autocast else x.dtype)


def in_blocks(W: Tensor, side: int) -> Tensor:
    """(d, k) as (d/b, b, k/b, b)."""
    return W.unflatten(1, (-1, side)).unflatten(0, (-1, side))


def affine(W: Tensor, D: Tensor) -> Tensor:
    """W (d, k) with every block W[i, j] replaced by W[i, j] (I + D_i) + D_i."""
    blocks = in_blocks(W, D.shape[1])
    return (blocks + torch.einsum("iajb,ibc->iajc", blocks, D) + D[:, :, None]).reshape(W.shape)


class _Product(torch.autograd.Function):
    """affine(W, D) x in `dtype`. The adapted weight is made again for the backward pass: kept, it would double W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, D: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x, D)
        ctx.base = base
        with torch.autocast(x.device.type, enabled=False):
            return x.to(dtype) @ affine(rows(base).to(D.dtype), D).to(dtype).T

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, D = ctx.saved_tensors
        wide = rows(ctx.base).to(D.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (slope @ affine(wide, D).to(slope.dtype)).to(x.dtype)
        side = D.shape[1]
        of_W = in_blocks((slope.flatten(0, -2).T @ x.flatten(0, -2).to(slope.dtype)).to(D.dtype), side)
        return of_x, None, torch.einsum("iajb,iajc->ibc", in_blocks(wide, side), of_W) + of_W.sum(dim=2), None


@dataclass(frozen=True)
class BoneType(PeftType):
    """What PEFT calls the rank is the side of the blocks."""

    def ranks(self, sites: Mapping[str, Site]) -> dict[str, Any]:
        return {}

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        sides = {name: adapter.D.shape[1] for name, adapter in adapters.items()}
        return super().config(method, adapters, modules) | spread("block", "r", sides, pattern=False)

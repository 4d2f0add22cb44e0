"""BOFT, orthogonal fine-tuning by butterflies. Liu et al., 2024, arXiv 2311.06243; blocks and permutations as in PEFT.

    W' = diag(s) W M',    M = B_{m-1} ... B_0,    B_i = P_i diag(R_i1, ..., R_in) P_i',    R = (I - Q) (I + Q)^-1

Q is the skew-symmetric part of a trained b x b matrix. P_i gathers halves of blocks that lie 2^i blocks apart, so that
m factors mix 2^(m-1) b inputs with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType, one_side
from lrft.model import linear as layers


@dataclass(frozen=True)
class Boft(Method):
    """Turns the inputs by a product of sparse rotations, and scales each output."""

    name: ClassVar[str] = "boft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2311.06243"
    equation: ClassVar[str] = "diag(s) W (B_{m-1} ... B_0)', B_i block-diagonal rotations between permutations"
    parameters: ClassVar[str] = "m k b + d; the rank is not used"
    exports: ClassVar[str] = "PEFT BOFT with one factor, or merged model"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-4
    rate_source: ClassVar[str] = "as hra, which turns the inputs too"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    peft_type: ClassVar[str] = "BOFT"

    boft_block_size: Annotated[int, Field(ge=2)] = 4
    """b; b 2^(m-1) must divide the inputs of every layer."""
    boft_n_butterfly_factor: Annotated[int, Field(ge=1)] = 1
    """m; 1 is orthogonal fine-tuning in blocks. More need an even b."""

    @classmethod
    def in_peft(cls) -> BoftType:
        return BoftType(
            "BOFT",
            BoftAdapter,
            {"R": Named("boft_R", "mnbc"), "s": Named("boft_s", "do")},
            options={
                "boft_block_size": "boft_block_size",
                "boft_n_butterfly_factor": "boft_n_butterfly_factor",
            },
            rank="",
            training=("boft_dropout", "boft_block_num"),
        )

    def build(self, site: Site) -> Adapter:
        side, factors = self.boft_block_size, self.boft_n_butterfly_factor
        if site.k % (side * 2 ** (factors - 1)):
            raise ValueError(
                f"boft's {factors} butterflies of blocks of {side} need inputs that {side * 2 ** (factors - 1)} "
                f"divides, and there are {site.k}: lower boft_block_size or boft_n_butterfly_factor"
            )
        if factors > 1 and (side % 2 or site.k // side % 2):
            raise ValueError(
                f"boft's butterflies need even blocks and an even number of them, not {site.k // side} of {side}"
            )
        return BoftAdapter(site, side, factors)


class BoftAdapter(Adapter):
    """R (m, k / b, b, b) zero, of which the skew-symmetric part counts; s (d, 1) one."""

    orders: Tensor

    def __init__(self, site: Site, side: int, factors: int) -> None:
        super().__init__(site)
        self.R = nn.Parameter(torch.zeros(factors, site.k // side, side, side, dtype=site.dtype))
        self.s = nn.Parameter(torch.ones(site.d, 1, dtype=site.dtype))
        orders = torch.stack([order(site.k, side, number, factors) for number in range(factors)])
        self.register_buffer("orders", orders, persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        """x M for x (..., k)."""
        eye = torch.eye(self.R.shape[-1], dtype=self.R.dtype, device=self.R.device)
        Q = (self.R - self.R.transpose(-1, -2)) / 2
        turns = torch.linalg.solve(eye + Q, eye - Q, left=False)
        for turn, places in zip(turns.flip(0), self.orders.flip(0), strict=True):
            blocks = torch.empty_like(x).index_copy(-1, places, x).unflatten(-1, (-1, len(eye)))
            x = torch.einsum("...nk,nkc->...nc", blocks, turn).flatten(-2)[..., places]
        return x

    def weight(self, W0: Tensor) -> Tensor:
        eye = torch.eye(self.site.k, dtype=W0.dtype, device=W0.device)
        return self.s * (W0 @ self.turned(eye).T)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """W x, and beside it what turn and scales change: near the start in bfloat16 nothing else would be left."""
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(self.site.dtype)
            change = (self.turned(wide) - wide).to(layers.dtype(base))
        y = base(x)
        plain = y if base.bias is None else y - base.bias
        scale = self.s[:, 0]
        return y + ((scale - 1) * plain + scale * layers.product(base, change)).to(y.dtype)


def order(k: int, side: int, number: int, factors: int) -> Tensor:
    """(k,) the place of each input in front of the blocks of factor `number`: of the half blocks within 2^(number + 1)
    of them, the even ones and then the odd ones."""
    places = torch.arange(k)
    if factors == 1:
        return places
    halves = places.view(-1, 2 ** (number + 1), side // 2)
    return torch.cat([halves[:, ::2], halves[:, 1::2]], dim=1).flatten()


@dataclass(frozen=True)
class BoftType(PeftType):
    """Sides and factors are those of the tensors: PEFT may be told a number of blocks instead, and without a compiler
    for CUDA it builds one factor whatever it is told."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        if method.boft_n_butterfly_factor > 1:
            raise ValueError("stock PEFT builds more than one butterfly factor only with a compiler for CUDA")
        return super().config(method, adapters, modules)

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        side = one_side({name: own["R"].shape[-1] for name, own in found.items()})
        factors = max(len(own["R"]) for own in found.values())
        return [(method, {"boft_block_size": side, "boft_n_butterfly_factor": factors})]

"""OFT, orthogonal fine-tuning of the inputs in blocks. Qiu et al., 2023, arXiv 2306.07280; on the inputs and by a cut
Neumann series as in Qiu et al., 2025, arXiv 2506.19847 (OFTv2), and as in PEFT.

    W' = W R',    R = diag(R_1, ..., R_n) on blocks of b inputs,    R_i = (I + Q_i) (I - Q_i)^-1,  Q_i = -Q_i'

The series of t terms is I + 2 Q + 2 Q^2 + ..., whose last term has a factor of one. Solved exactly, PEFT turns the
other way, by (I - Q) (I + Q)^-1, and so does this file.
"""

from __future__ import annotations

import math
import re
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

SERIES_SINCE = "0.18.0"


@dataclass(frozen=True)
class Oft(Method):
    """Turns the inputs in small blocks: angles between the neurons of a layer stay as they are."""

    name: ClassVar[str] = "oft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2306.07280"
    equation: ClassVar[str] = "W diag(R_1, ..., R_n)', R_i orthogonal of b x b by Cayley's transform"
    parameters: ClassVar[str] = "k (b - 1) / 2; the rank is not used"
    exports: ClassVar[str] = "PEFT OFT, or merged model"
    evidence: ClassVar[str] = "forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 6e-4
    rate_source: ClassVar[str] = "as hra, which turns the inputs too"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    peft_type: ClassVar[str] = "OFT"

    oft_block_size: Annotated[int, Field(ge=2)] = 32
    """b, which must divide the inputs of every layer."""
    block_share: bool = False
    """One rotation for all blocks of a layer."""
    use_cayley_neumann: bool = True
    """The cut series instead of the inverse: faster, and orthogonal only where Q is small."""
    num_cayley_neumann_terms: Annotated[int, Field(ge=2)] = 5
    """Terms of the series."""

    @classmethod
    def in_peft(cls) -> OftType:
        words = ("oft_block_size", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
        return OftType(
            "OFT",
            OftAdapter,
            {"Q": Named("oft_R.weight", "ne")},
            options={word: word for word in words},
            fixed={"coft": (False,)},
            rank="",
            training=("module_dropout", "eps", "r"),
        )

    def build(self, site: Site) -> Adapter:
        if site.k % self.oft_block_size:
            near = max(b for b in range(1, self.oft_block_size) if site.k % b == 0)
            raise ValueError(
                f"oft's blocks of {self.oft_block_size} do not divide {site.k} inputs: set oft_block_size to {near}"
            )
        terms = self.num_cayley_neumann_terms if self.use_cayley_neumann else 0
        return OftAdapter(site, self.oft_block_size, shared=self.block_share, terms=terms)


class OftAdapter(Adapter):
    """Q (n, b (b - 1) / 2) zero: the upper triangles, row by row. n is 1 where the blocks are shared."""

    upper: Tensor

    def __init__(self, site: Site, side: int, *, shared: bool, terms: int) -> None:
        super().__init__(site)
        self.side, self.terms = side, terms
        self.Q = nn.Parameter(torch.zeros(1 if shared else site.k // side, side * (side - 1) // 2, dtype=site.dtype))
        self.register_buffer("upper", torch.triu_indices(side, side, 1), persistent=False)

    def turns(self) -> Tensor:
        """R - I of each block (k / b, b, b): a small turn keeps its digits."""
        Q = self.Q.new_zeros(len(self.Q), self.side, self.side)
        Q = Q.index_put((torch.arange(len(Q), device=Q.device)[:, None], *self.upper), self.Q)
        Q = Q - Q.transpose(1, 2)
        turn = series(Q, self.terms) if self.terms else cayley(Q)
        return turn.expand(self.site.k // self.side, -1, -1)

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + torch.einsum("onc,nkc->onk", W0.unflatten(1, (-1, self.side)), self.turns()).flatten(1)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        """W x, and beside it W times what the turn changes: in bfloat16 a turned x would lose a turn that is small."""
        with torch.autocast(x.device.type, enabled=False):
            blocks = x.to(self.site.dtype).unflatten(-1, (-1, self.side))
            change = torch.einsum("...nk,nkc->...nc", blocks, self.turns()).flatten(-2)
        y = base(x)
        return y + layers.product(base, change.to(layers.dtype(base))).to(y.dtype)


def series(Q: Tensor, terms: int) -> Tensor:
    """2 Q + 2 Q^2 + ... of skew-symmetric Q (n, b, b); the last power has a factor of one, and is at least the third
    where there is a second."""
    total, power = 2 * Q, Q
    last = max(3, terms - 1) if terms > 2 else 1
    for exponent in range(2, last + 1):
        power = power @ Q
        total = total + (1 if exponent == last else 2) * power
    return total


def cayley(Q: Tensor) -> Tensor:
    """(I - Q) (I + Q)^-1 - I of skew-symmetric Q (n, b, b)."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return torch.linalg.solve(eye + Q, -2 * Q, left=False)


@dataclass(frozen=True)
class OftType(PeftType):
    """The side of the blocks is that of the tensors: PEFT adjusts the one that it is told, or takes their number."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"r": 0, "peft_version": SERIES_SINCE}

    def refusal(self, config: Mapping[str, Any]) -> str:
        """Before 0.18 PEFT computed another series, and before that it wrote no version."""
        version = str(config.get("peft_version") or "0")
        older = [int(n) for n in re.findall(r"\d+", version)[:2]] < [int(n) for n in SERIES_SINCE.split(".")[:2]]
        if older and config.get("use_cayley_neumann"):
            return f"use_cayley_neumann is true, and PEFT {SERIES_SINCE} changed that series (peft_version: {version})"
        return super().refusal(config)

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        side = one_side({name: side_of(own["Q"].shape[1]) for name, own in found.items()})
        return [(method, self.values(config) | {"oft_block_size": side})]


def side_of(numbers: int) -> int:
    """b of the b (b - 1) / 2 numbers of an upper triangle."""
    return (1 + math.isqrt(1 + 8 * numbers)) // 2

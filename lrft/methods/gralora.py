"""GraLoRA. Jung et al., 2025, arXiv 2505.20355, section 3; indices and initial values as in the released code.

The weight is cut into n x n blocks, and each block has a LoRA of its own, of rank g / n. Block (j, i) is

    dW[j, i] = s B[j][:, i-th g/n columns] A[i][j-th g/n rows]

where A[i] (g, k / n) reads the i-th part of the input and B[j] (d / n, g) writes the j-th part of the output.
The hybrid form adds a plain LoRA of rank h. As in the authors' code the rank r = g + h counts both and s = alpha / r.
(PEFT's r is g, its alpha / (r + h) the same number.) Dropout gives the grid and the hybrid part one mask.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Gralora(Method):
    """A grid of small LoRAs, one for each block of the weight: more rank than LoRA for the same numbers."""

    name: ClassVar[str] = "gralora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2505.20355"
    equation: ClassVar[str] = "W + (alpha / r) [B_ji A_ji] over n x n blocks, each of rank r / n"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank n r, PEFT GRALORA, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "arXiv 2505.20355, and PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "GRALORA"
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    blocks: Annotated[int, Field(ge=1)] = 2
    """Blocks along each side; the authors take 2 at ranks 16 and 32, 4 at ranks 64 and 128."""
    hybrid_rank: Annotated[int, Field(ge=0)] = 0
    """The part of the rank that goes to a plain LoRA over the whole weight; the authors take 8 at rank 16."""

    @classmethod
    def in_peft(cls) -> GraloraType:
        return GraloraType(
            "GRALORA",
            GraloraAdapter,
            {
                "A_grid": Named("gralora_A", "nag", turned=True),
                "B_grid": Named("gralora_B", "ngb", turned=True),
                "A_whole": Named("gralora_A_general.weight", "hk"),
                "B_whole": Named("gralora_B_general.weight", "dh"),
            },
            options={"blocks": "gralora_k", "hybrid_rank": "hybrid_r"},
            alpha="alpha",
            dropout="gralora_dropout",
            conv1d=True,
        )

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        n, grid_rank = self.blocks, site.rank - self.hybrid_rank
        if site.d % n or site.k % n:
            raise ValueError(
                f"gralora: {n} blocks do not divide {site.d} outputs and {site.k} inputs: "
                f"set blocks to a divisor of {math.gcd(site.d, site.k)}"
            )
        if grid_rank < n or grid_rank % n:
            raise ValueError(
                f"gralora's rank {site.rank} less hybrid_rank {self.hybrid_rank} must be a multiple of {n} blocks: "
                f"change rank, hybrid_rank or blocks"
            )
        return GraloraAdapter(site, n, grid_rank, self.hybrid_rank)


class GraloraAdapter(Delta):
    """A_grid (n, g, k/n) uniform in +-sqrt(n/k), B_grid (n, d/n, g) zero; A_whole (h, k), B_whole (d, h) likewise."""

    def __init__(self, site: Site, n: int, grid_rank: int, whole_rank: int) -> None:
        super().__init__(site)
        self.A_grid = nn.Parameter(torch.empty(n, grid_rank, site.k // n, dtype=site.dtype))
        self.B_grid = nn.Parameter(torch.zeros(n, site.d // n, grid_rank, dtype=site.dtype))
        nn.init.uniform_(self.A_grid, -math.sqrt(n / site.k), math.sqrt(n / site.k))
        self.whole = whole_rank > 0
        if self.whole:
            self.A_whole = nn.Parameter(torch.empty(whole_rank, site.k, dtype=site.dtype))
            self.B_whole = nn.Parameter(torch.zeros(site.d, whole_rank, dtype=site.dtype))
            nn.init.kaiming_uniform_(self.A_whole, a=math.sqrt(5))

    def pieces(self) -> tuple[Tensor, Tensor]:
        """A (i, j, g/n, k/n) and B (j, d/n, i, g/n), the pair of block (j, i)."""
        n = len(self.A_grid)
        return self.A_grid.unflatten(1, (n, -1)), self.B_grid.unflatten(2, (n, -1))

    def delta_weight(self) -> Tensor:
        A, B = self.pieces()
        dW = torch.einsum("joir,ijrc->joic", B, A).reshape(self.site.d, self.site.k)
        return self.site.scale * (dW + self.B_whole @ self.A_whole if self.whole else dW)

    def delta(self, x: Tensor) -> Tensor:
        A, B = self.pieces()
        mixed = torch.einsum("...ic,ijrc->...jir", x.unflatten(-1, (len(A), -1)), A)
        y = torch.einsum("...jir,joir->...jo", mixed, B).flatten(-2)
        return self.site.scale * (y + linear(linear(x, self.A_whole), self.B_whole) if self.whole else y)

    def factors(self) -> Factors:
        """The same as one pair of rank n g + h: a thin product for each block, zeros elsewhere."""
        A, B = self.pieces()
        n = len(A)
        tall = torch.block_diag(*A.flatten(1, 2))
        wide = torch.cat([torch.block_diag(*B[:, :, i]).unflatten(1, (n, -1)) for i in range(n)], dim=1).flatten(1)
        if self.whole:
            tall, wide = torch.cat([tall, self.A_whole]), torch.cat([wide, self.B_whole], dim=1)
        return Factors(wide, tall, self.site.scale)


@dataclass(frozen=True)
class GraloraType(PeftType):
    """PEFT's rank is that of the grid alone, its factor alpha over both."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        said = super().config(method, adapters, modules)
        return said | {"r": said["r"] - method.hybrid_rank}

    def said_rank(self, name: str, config: Mapping[str, Any]) -> int:
        return int(config["r"]) + int(config.get("hybrid_r") or 0)

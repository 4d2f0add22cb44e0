"""GOR, group orthogonalisation. Kurtz, Bar, Giryes, 2023, arXiv 2306.10001, as in the released code.

    loss + strength sum over layers and groups of |w w' - I|^2,    w one of N groups of g = rows / N rows of a factor

or |w' w - I|^2 where a group has more rows than columns. N is at most a quarter of the rows. `inter`, the code's word,
makes the rows inside of each run of g rows orthonormal; `intra` the sets of j-th rows of all groups. With B = 0 the
term has no slope.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Part, Run

LEAST_ROWS = 4  # of a group, as released


@dataclass(frozen=True)
class Gor(Part):
    """Draws groups of rows of one factor towards orthonormal ones."""

    name: ClassVar[str] = "gor"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2306.10001"
    equation: ClassVar[str] = "loss + c sum over groups |w w' - I|^2"
    evidence: ClassVar[str] = "penalty compared with the released code, both modes, in float64"
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    strength: Annotated[float, Field(ge=0)] = 1e-6
    """c. The authors' 1e-6 for LoRA; rows are drawn to length one, which is far: keep it small."""
    groups: Annotated[int, Field(ge=1)] = 32
    """N, 32 in the authors' LoRA script. 1: the whole factor is one group."""
    mode: Literal["inter", "intra"] = "inter"
    """Which rows are compared: those of each group, or the j-th rows of all groups."""
    factor: Literal["B", "A"] = "B"
    """The regularised factor. The authors regularise only B."""

    def count(self, rows: int) -> int:
        return max(1, min(self.groups, rows // LEAST_ROWS))

    def rows(self, site: Site) -> int:
        return site.d if self.factor == "B" else site.rank

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        rows = self.rows(adapter.site)
        if rows % self.count(rows):
            raise ValueError(
                f"gor: {self.count(rows)} groups do not divide the {rows} rows of {self.factor}: use other groups"
            )
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        factors = [adapter.tensors()[self.factor] for adapter in run.adapters.values()]
        return self.strength * torch.stack([self.distance(F) for F in factors]).sum()

    def distance(self, F: Tensor) -> Tensor:
        """Distance of a factor (rows, n), summed over its groups."""
        n = self.count(len(F))
        groups = F.reshape(n, len(F) // n, -1)
        if self.mode == "intra" and groups.shape[1] > 1:  # groups of one row: all rows are one set, as released
            groups = groups.transpose(0, 1)
        elif self.mode == "intra":
            groups = F[None]
        gram = groups.mT @ groups if groups.shape[1] >= groups.shape[2] else groups @ groups.mT
        return (gram - torch.eye(gram.shape[-1], dtype=F.dtype, device=F.device)).square().sum()

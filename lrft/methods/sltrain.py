"""SLTrain. Han et al., 2024, arXiv 2406.02214: a low-rank matrix plus a sparse one with random, fixed positions.

The paper trains whole models from nothing and its code says that it is no adapter: here the sum is added to W and its
values v start at zero, which is a reconstruction. v has no factor, as there. The positions are the same for all layers
of one shape and made again from a seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.methods.fourierft import positions


@dataclass(frozen=True)
class Sltrain(Method):
    """A pair of factors plus single entries of the weight at random positions."""

    name: ClassVar[str] = "sltrain"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2406.02214"
    equation: ClassVar[str] = "W + (alpha / r) B A + V, V zero but for a share of its entries"
    parameters: ClassVar[str] = "r (d + k) + density d k"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "update compared with the released formula; use as an adapter is a reconstruction"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is near"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    density: Annotated[float, Field(gt=0, le=1)] = 0.03
    """Share of the weight's entries that are trained one by one. The paper: 0.03, for 7B 0.05."""
    positions_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of the positions; saved with the adapter."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        shape = (site.d, site.k)
        if shape not in self.known:
            count = int(self.density * site.d * site.k)
            self.known[shape] = positions(*shape, count, self.positions_seed).sort().values
        return SltrainAdapter(site, self.known[shape])

    @cached_property
    def known(self) -> dict[tuple[int, int], Tensor]:
        """By shape of a layer: a permutation of a large one takes a second."""
        return {}


class SltrainAdapter(Delta):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) zero; v (n,) zero, at `entries` (n,) of the weight, row by row."""

    entries: Tensor

    def __init__(self, site: Site, entries: Tensor) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.v = nn.Parameter(torch.zeros(len(entries), dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.register_buffer("entries", entries, persistent=False)

    def sparse(self) -> Tensor:
        """V (d, k), dense: at a few percent a dense product is the faster one. It is made for each pass, not kept."""
        d, k = self.site.d, self.site.k
        return self.v.new_zeros(d * k).index_copy(0, self.entries, self.v).view(d, k)

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B @ self.A + self.sparse()

    def sums_from(self) -> float:
        return 0

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A), self.B) + linear(x, self.sparse())

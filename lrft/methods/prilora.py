"""PRILoRA. Benedek, Wolf, 2024, arXiv 2401.11316: its ranks. Its pruning of A by the size of the inputs is left out.

No code was released; the paper's ranks are 4 to 12, which is half to one and a half times their mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from pydantic import Field

from lrft.adapters.adapter import Site
from lrft.adapters.part import Part


@dataclass(frozen=True)
class Prilora(Part):
    """Ranks that rise with depth, around the recipe's rank in the middle; the factor of the update stays the same."""

    name: ClassVar[str] = "prilora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2401.11316"
    equation: ClassVar[str] = "rank of block l of 0 to L - 1: r (1 - spread + 2 spread l / (L - 1))"
    evidence: ClassVar[str] = "ranks compared with the paper's formula; only its ranks are implemented"
    slots: ClassVar[tuple[str, ...]] = ("ranks",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    spread: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The first adapted block has (1 - spread) times the recipe's rank, the last one (1 + spread) times."""

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        depths = [site.depth for site in sites if site.depth is not None]
        if len(set(depths)) < 2:
            return list(sites)
        first, last = min(depths), max(depths)
        return [
            site
            if site.depth is None
            else replace(site, rank=self.rank(site.rank, (site.depth - first) / (last - first)))
            for site in sites
        ]

    def rank(self, mean: int, place: float) -> int:
        """The rank at `place` from 0, the first block, to 1, the last one; at least 1. Halves are rounded up."""
        return max(1, math.floor(mean * (1 + self.spread * (2 * place - 1)) + 0.5))

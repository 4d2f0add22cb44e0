"""GoRA. He et al., 2025, arXiv 2502.12171, section 3.

The released code lost the minus of B's start in August 2025: here it is a step down, as in the paper. Each trained
token counts the same in G, as in training; the released code averages the batches' mean losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Gora(Part):
    """Gives each layer a rank by how much its weight matters, and starts with a step against the gradient.

    The recipe's rank is what layers of equal weight get. The step is as large as `step` times the gradient, whatever
    alpha; the factor is that of rslora at the layer's own rank.
    """

    name: ClassVar[str] = "gora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2502.12171"
    equation: ClassVar[str] = "r ~ mean |W o G|, B0 = -(step / s) sqrt(k / r) G A' (A A')^-1, s = alpha / sqrt(r)"
    parameters: ClassVar[str] = "about r (d + k) in the mean"
    evidence: ClassVar[str] = "ranks compared with the released formulas, the init with a least-squares solution"
    slots: ClassVar[tuple[str, ...]] = ("ranks", "init", "scale")
    requires: ClassVar[tuple[str, ...]] = ("pair", "scale")
    init_changes_output: ClassVar[bool] = True

    rows: Annotated[int, Field(ge=1)] = 32
    """Rows of the training data whose gradient is looked at, in two passes or more. 32 is ours; the released recipe has
    1,024: 32 batches of 4 rows on each of 8 devices."""
    least: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Smallest rank over the recipe's: the released recipe has 4 for 8. With least and most 1 no rank is decided."""
    most: Annotated[float, Field(ge=1)] = 4.0
    """Largest rank over the recipe's: the released recipe has 32 for 8."""
    step: Annotated[float, Field(ge=0)] = 0.05
    """Length of the first step over that of the mean token loss's gradient. 0.05 as in the paper; 0: ranks only."""

    def alpha(self, rank: int) -> float:
        return 16.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / math.sqrt(rank)

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        if self.least == self.most:
            ranks = {site.name: site.rank for site in context.sites}
        else:
            sizes = {
                site.name: (context.weight(site) * G).abs().mean().item() for site, G in context.gradients(self.rows)
            }
            ranks = context.agree(self.ranks(context.sites, sizes))
        chosen = {}
        for site in context.sites:
            generator = torch.Generator().manual_seed(seed_of(context.seed, self.name, site.name))
            uniform = torch.rand(ranks[site.name], site.k, dtype=site.dtype, generator=generator)
            A = (2 * uniform - 1) / math.sqrt(site.k)  # as lora's own
            chosen[site.name] = A.to(next(context.model.get_submodule(site.name).parameters()).device)
        # B needs no more of the gradient than G A'.
        products = context.right_products(self.rows, {name: A.T for name, A in chosen.items()})
        return {name: {"A": A, "GA": products[name]} for name, A in chosen.items()}

    def ranks(self, sites: Sequence[Site], sizes: Mapping[str, float]) -> dict[str, int]:
        """Shares of the numbers that the recipe's ranks have in all, in proportion to `sizes`, and within bounds."""
        budget = sum((site.d + site.k) * site.rank for site in sites)
        whole = sum(sizes.values())
        found = {}
        for site in sites:
            share = round(budget * sizes[site.name] / whole) // (site.d + site.k) if whole else site.rank
            least, most = max(1, round(self.least * site.rank)), round(self.most * site.rank)
            found[site.name] = min(max(share, least), most, site.d, site.k)
        return found

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        """The factor follows the rank."""
        ranks = [len(seen[site.name]["A"]) for site in sites]
        return [
            replace(site, rank=rank, scale=site.scale * math.sqrt(site.rank / rank))
            for site, rank in zip(sites, ranks, strict=True)
        ]

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        A, site = seen["A"], adapter.site
        if site.rank > site.k:
            raise ValueError(f"rank {site.rank} is larger than the layer's {site.k} inputs: lower it")
        size = self.step * math.sqrt(site.k / site.rank) / site.scale
        adapter.A.copy_(A)
        adapter.B.copy_(-size * torch.linalg.solve(A @ A.T, seen["GA"].T).T)

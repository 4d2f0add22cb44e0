"""The ranks of LaMDA++. Azizi et al., 2024, arXiv 2406.12832: by the spectra of the weights.

    E(r) = sum_{i <= r} S_i^p / sum_i S_i^p;  layers in the order of E(highest rank) - E(lowest rank)

are cut into equal groups, one for each rank. The released code has no such ranks, and the paper does not say p nor the
ranks: both are our reconstruction. LaMDA's own update, B S A with columns of B frozen one by one, is `lamda`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.calibration import CalibrationContext
from lrft.adapters.part import CalibrationResult, Part


@dataclass(frozen=True)
class LamdaPlusPlus(Part):
    """Gives a higher rank to the layers in whose spectrum a higher rank catches more, and keeps the mean rank."""

    name: ClassVar[str] = "lamda++"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2406.12832"
    equation: ClassVar[str] = "ranks (1 - spread) r to (1 + spread) r by E(highest) - E(lowest), E the share of energy"
    evidence: ClassVar[str] = "reconstruction"
    slots: ClassVar[tuple[str, ...]] = ("ranks",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    spread: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The lowest rank is (1 - spread) times the recipe's, the highest (1 + spread) times; the factor s stays."""
    steps: Annotated[int, Field(ge=1)] = 2
    """Ranks below the recipe's, and as many above it."""
    power: Annotated[float, Field(gt=0)] = 2.0
    """p: 2 counts energy, 1 counts the singular values themselves."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        """For each site its "gain" ()."""
        return {site.name: {"gain": self.gain(context.weight(site), site.rank)} for site in context.sites}

    def gain(self, W: Tensor, rank: int) -> Tensor:
        """The share of energy between the lowest and the highest rank."""
        # The eigenvalues of the smaller Gram matrix: many times faster than a decomposition of W.
        values = torch.linalg.eigvalsh(W @ W.T if len(W) <= W.shape[1] else W.T @ W)
        energy = values.clamp_min(0).flip(0) ** (self.power / 2)
        between = energy[self.rank(rank, 0) : self.rank(rank, 2 * self.steps)]
        return between.sum() / energy.sum().clamp_min(torch.finfo(W.dtype).tiny)

    def rank(self, mean: int, level: int) -> int:
        """The rank of a level from 0, the lowest. Lower and higher levels are as far from the mean as each other."""
        away = math.floor(mean * self.spread * abs(level - self.steps) / self.steps)
        return mean + away if level > self.steps else mean - away

    def assign_ranks_from(self, sites: Sequence[Site], seen: CalibrationResult) -> list[Site]:
        levels = 2 * self.steps + 1
        ranks: dict[str, int] = {}
        for mean in {site.rank for site in sites}:
            # Layers to which the recipe gives the same rank share it out among themselves. Ties go by name.
            group = sorted((seen[s.name]["gain"].item(), s.name) for s in sites if s.rank == mean)
            for place, (_, name) in enumerate(group):
                # The levels of the places are symmetric about the middle one, so that the mean is kept exactly.
                ranks[name] = self.rank(mean, (2 * place + 1) * levels // (2 * len(group)))
        return [replace(site, rank=ranks[site.name]) for site in sites]

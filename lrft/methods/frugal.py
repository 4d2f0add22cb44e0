"""FRUGAL. Zmushko et al., 2024, arXiv 2411.07837: AdamW where it remembers, the sign of the gradient elsewhere.

Every so many steps a share of all weights is chosen for AdamW, whose moments and count of steps begin anew; the others
move by lr `inactive_scale` sign(G). Both parts make up the gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field

from lrft.adapters.projected_adam import Grid, Projecting


@dataclass(frozen=True)
class Frugal(Projecting):
    """Trains whole weights: a changing share of them by AdamW, the others by the sign of their gradient."""

    name: ClassVar[str] = "frugal"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2411.07837"
    equation: ClassVar[str] = "W <- W - lr (AdamW of the chosen part of G, sign of the other)"
    evidence: ClassVar[str] = "index formulas of the released code"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    projection: Literal["block", "coordinate", "svd", "randomized", "random", "dct"] = "block"
    """What is chosen: whole layers; columns; the gradient's leading directions, exact or randomized; random directions;
    its strongest cosines."""
    density: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the layers (block), else of the directions of each layer's smaller side: the recipe's rank says nothing
    here. 1 is AdamW, 0 is the sign alone."""
    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps from one choice to the next, or a share of the run when below 1. The paper takes 200."""
    inactive: Literal["sign", "sgd", "none"] = "sign"
    """The step of what is not chosen: the sign of the gradient, the gradient, or none."""
    inactive_scale: Annotated[float, Field(gt=0)] = 1.0
    """Its learning rate over the other's: 1 in the paper's pretraining, 0.1 in its fine-tuning."""

    def grid(self) -> Grid:
        return Grid(
            projection=self.projection,
            density=self.density,
            moments="reset",
            residual=self.inactive,
            residual_scale=self.inactive_scale,
        )

    def rank(self, rank: int, shape: torch.Size) -> int:
        return math.floor(round(self.density * min(shape), 9))

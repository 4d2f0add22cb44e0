"""FRUGAL. Zmushko et al., 2024, arXiv 2411.07837: AdamW where it remembers, the sign of the gradient elsewhere.

Every so many steps a share of all weights is chosen for AdamW, whose moments and count of steps begin anew; the others
move by lr `inactive_scale` sign(G). Both parts make up the gradient.

The defaults are those of the released fine-tuning of RoBERTa, columns and 0.1 for the others, but for two: it chooses
anew after 500 steps, and 8 columns of 768, where 200 and the share of 0.25 are the pretraining's. Weight decay draws
the change to zero, so the weight to the base's; in the released code it draws the weight to zero.
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
    evidence: ClassVar[str] = (
        "optimiser steps compared with the released optimisers for layers, columns and singular vectors; density 1 "
        "with stock AdamW"
    )
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "the released recipes for GLUE: the lowest of 5e-5 to 5e-4"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    projection: Literal["block", "coordinate", "svd", "randomized", "random", "dct"] = "coordinate"
    """What is chosen: whole layers, as in the authors' pretraining; columns of the inputs, as in their fine-tuning; the
    gradient's leading directions, exact or randomized; random directions; its strongest cosines."""
    density: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the layers (block), of each layer's inputs (coordinate), else of the directions of its smaller side: the
    recipe's rank says nothing here. 1 is AdamW, 0 is the sign alone."""
    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps between selections, or a fraction of the run when below 1. The authors use 200, or 500 on GLUE."""
    inactive: Literal["sign", "sgd", "none"] = "sign"
    """Update of the unselected part: the sign of the gradient, the gradient, or none."""
    inactive_scale: Annotated[float, Field(gt=0)] = 0.1
    """Its learning rate relative to the selected part's: 0.1 in the authors' fine-tuning, 1 in their pretraining."""

    def grid(self) -> Grid:
        return Grid(
            projection=self.projection,
            density=self.density,
            moments="reset",
            residual=self.inactive,
            residual_scale=self.inactive_scale,
            of_inputs=self.projection == "coordinate",
            late_eps=True,
        )

    def rank(self, rank: int, shape: torch.Size) -> int:
        """As released: of columns the whole part of the share, of directions the nearest whole number."""
        if self.projection == "coordinate":
            return math.floor(round(self.density * shape[1], 9))
        return round(self.density * min(shape))

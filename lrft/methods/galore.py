"""GaLore. Zhao et al., 2024, arXiv 2403.03507, algorithm 1.

G (m, n), m >= n: R = G P' for the r leading right singular vectors P (r, n) of the gradient at the last change;
W <- W - lr factor Adam(R) P. The rank r is the recipe's. Where a layer has fewer outputs than inputs, its transpose.

The learning rate, betas and epsilon are the recipe's. The authors have betas of (0.9, 0.999), an epsilon of 1e-6, and
in pretraining a rate of 0.01 with a factor of 0.25, in fine-tuning 3e-5 with 4, as the defaults here. Weight decay
draws the change to zero, so the weight to the base's; in the released code it draws the weight to zero.

With `dct` it is the DCT-AdamW of Modoranu et al., 2025, arXiv 2505.17967, whose code ranks the columns by their sums of
absolute values; by their squares, as here, the columns left out hold least.

With `layerwise` a weight moves in the backward pass, as soon as it has its gradient, which is then dropped: the steps
are those of the plain mode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lrft.adapters.projected_adam import Grid, LayerwiseAdam, ProjectedAdam, Projecting


@dataclass(frozen=True)
class Galore(Projecting):
    """Trains whole weights by Adam in the gradient's leading directions only, which change now and then."""

    name: ClassVar[str] = "galore"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2403.03507"
    equation: ClassVar[str] = "W <- W - lr factor Adam(G P') P"
    evidence: ClassVar[str] = "optimiser steps compared with the released optimiser, in float64"
    learning_rate: ClassVar[float] = 3e-5
    rate_source: ClassVar[str] = "the released recipe for GLUE, with its factor of 4"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")
    takes_gradients: ClassVar[tuple[str, Any, str]] = ("layerwise", True, "step")

    projection: Literal["svd", "randomized", "random", "dct", "coordinate"] = "svd"
    """The directions: leading singular vectors, exact or randomized; random; strongest DCT rows; random
    columns. randomized is faster for large layers."""
    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps between projection updates, or a fraction of the run when below 1. The paper takes 200 to 500."""
    factor: Annotated[float, Field(gt=0)] = 4.0
    """Scaling factor of the step: the paper's alpha (scale in its code), 4 in fine-tuning and 0.25 in pretraining."""
    moments: Literal["keep", "rotate", "reset"] = "keep"
    """Adam's moments when the projection changes: keep, rotate into the new directions, or reset."""
    layerwise: bool = False
    """Move each weight in the backward pass and keep no gradients: one micro-batch a step, one process, no clipping."""

    def grid(self) -> Grid:
        return Grid(projection=self.projection, scale=self.factor, moments=self.moments)

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        return (LayerwiseAdam if self.layerwise else ProjectedAdam)(groups, self.grid(), **given)

    def gradient_numbers(self, d: int, k: int, rank: int) -> int:
        return 0

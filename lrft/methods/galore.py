"""GaLore. Zhao et al., 2024, arXiv 2403.03507, algorithm 1.

G (m, n), m >= n: R = G P' for the r leading right singular vectors P (r, n) of the gradient at the last change;
W <- W - lr factor Adam(R) P. The rank r is the recipe's. Where a layer has fewer outputs than inputs, its transpose.

The learning rate, betas and epsilon are the recipe's: the paper's are 0.01, (0.9, 0.999) and 1e-6. With `dct` it is the
DCT-AdamW of Modoranu et al., 2025, arXiv 2505.17967, whose code ranks the columns by their sums of absolute values; by
their squares, as here, the columns left out hold least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lrft.adapters.projected_adam import Grid, Projecting


@dataclass(frozen=True)
class Galore(Projecting):
    """Trains whole weights by Adam in the gradient's leading directions only, which change now and then."""

    name: ClassVar[str] = "galore"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2403.03507"
    equation: ClassVar[str] = "W <- W - lr factor Adam(G P') P"
    evidence: ClassVar[str] = "index formulas of the released code"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    projection: Literal["svd", "randomized", "random", "dct", "coordinate"] = "svd"
    """The directions: leading singular vectors, exact or randomized; random ones; the strongest cosines; random
    columns. randomized is faster for large layers."""
    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps from one projection to the next, or a share of the run when below 1. The paper takes 200 to 500."""
    factor: Annotated[float, Field(gt=0)] = 0.25
    """On the step: the paper's alpha (scale in its code), 0.25 in pretraining and 4 in fine-tuning."""
    moments: Literal["keep", "rotate", "reset"] = "keep"
    """Adam's moments when the directions change: kept as they are; turned into the new ones; begun anew."""

    def grid(self) -> Grid:
        return Grid(projection=self.projection, scale=self.factor, moments=self.moments)

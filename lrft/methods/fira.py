"""Fira. Chen et al., 2024, arXiv 2410.01623: GaLore's step, and what its projection leaves of the gradient.

G (m, n), m >= n: R = G P' (m, r), N = Adam(R) before the correction of its start; S = (G - R P), row i times
|N_i| / |R_i|; W <- W - lr bias (factor N P + S). |S| grows by at most the share `growth` from step to step.

The rest is that of the paper, orthogonal to P. The released code subtracts factor R P, the same for a factor of 1 as in
its fine-tuning; `residual: official` does as well. Weight decay draws the change to zero, so the weight to the base's;
in the released code it draws the weight to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lrft.adapters.projected_adam import Grid, Projecting


@dataclass(frozen=True)
class Fira(Projecting):
    """GaLore with the rest of the gradient added, scaled row by row as Adam scales the projected part."""

    name: ClassVar[str] = "fira"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2410.01623"
    equation: ClassVar[str] = "W <- W - lr (factor Adam(R) P + |Adam(R)| / |R| (G - R P)), R = G P'"
    evidence: ClassVar[str] = (
        "optimiser steps compared with the released optimiser, factor 1, and factor 0.25 with residual: official, "
        "in float64"
    )
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "arXiv 2410.01623, LLaMA-7B"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    projection: Literal["svd", "randomized", "random", "dct", "coordinate"] = "svd"
    """The directions: leading singular vectors, exact or randomized; random; strongest DCT rows; random
    columns. randomized is faster for large layers."""
    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps between projection updates, or a fraction of the run when below 1. The paper takes 200."""
    factor: Annotated[float, Field(gt=0)] = 1.0
    """Scaling factor of the projected part: 1 in the paper's fine-tuning, 0.25 in its pretraining."""
    moments: Literal["keep", "rotate", "reset"] = "keep"
    """Adam's moments when the projection changes: keep, rotate into the new directions, or reset."""
    residual: Literal["paper", "official"] = "paper"
    """What is left of the gradient: without its whole projected part, or as the released code has it, without factor
    times that part. They differ where factor is not 1."""
    growth: Annotated[float, Field(ge=0)] = 0.01
    """Share by which the rest may grow from one step to the next, which keeps spikes out of the loss. The paper's."""

    def grid(self) -> Grid:
        return Grid(
            projection=self.projection,
            scale=self.factor,
            moments=self.moments,
            residual="fira",
            growth=1 + self.growth,
            rest=self.residual,
        )

"""Online Subspace Descent. Liang et al., 2024, arXiv 2408.12857: GaLore whose projection P learns in each step.

G (m, n), m >= n: W <- W - lr factor Adam(G P') P, then P (r, n) makes one step of AdamW on

    |U P' P - U|^2,    U = G / |G|

at a rate of 1 / every, times the present learning rate over the recipe's. P begins with the leading right singular
vectors of the first gradient: the minimum, for that gradient. The paper's term for orthogonality is not in its code,
nor here. The code decays P as torch's AdamW does unless told otherwise (`decay`: 0.01), which shrinks the steps with
it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.part import Run
from lrft.adapters.projected_adam import Grid, ProjectedAdam, Projecting

BETAS, EPS = (0.9, 0.999), 1e-8  # of P's own AdamW: torch's, as released


@dataclass(frozen=True)
class OnlineSubspaceDescent(Projecting):
    """GaLore with directions that learn in each step what the gradient's are, in place of decompositions."""

    name: ClassVar[str] = "online-subspace-descent"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2408.12857"
    equation: ClassVar[str] = "W <- W - lr factor Adam(G P') P, P <- AdamW of |U P'P - U|^2 for U = G / |G|"
    evidence: ClassVar[str] = "optimiser steps compared with the released code, including its decay of P"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: ten times full's best, or more"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    every: Annotated[float, Field(gt=0)] = 200.0
    """1 over the rate at which the directions learn; the authors' 200. A share of the run when below 1."""
    factor: Annotated[float, Field(gt=0)] = 0.25
    """Scaling factor of the step: 0.25 in the authors' pretraining."""
    decay: Annotated[float, Field(ge=0)] = 0.0
    """Weight decay of P."""

    def grid(self) -> Grid:
        return Grid(scale=self.factor)

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        return OnlineAdam(self, [{**group, "peak": group["lr"]} for group in groups], **given)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        m, n = max(d, k), min(d, k)
        return (2 * m + 3 * n) * min(rank, n)

    def before_step(self, run: Run) -> None:
        for group in run.optimizer.param_groups if run.optimizer else ():
            group["period"] = run.total_steps  # one decomposition, the first
            group["gap"] = run.steps(self.every)


class OnlineAdam(ProjectedAdam):
    def __init__(self, part: OnlineSubspaceDescent, groups: list[dict[str, Any]], **given: Any) -> None:
        super().__init__(groups, part.grid(), **given)
        self.decay = part.decay

    def learn(self, state: dict[str, Tensor], G: Tensor, group: dict[str, Any]) -> None:
        if int(state["step"]) == 1:  # P is the minimum
            return
        slope, lr = slope_of(state["P"], G), group["lr"] / group["peak"] / group["gap"]
        if "P_mean" not in state:
            state.update(P_mean=torch.zeros_like(slope), P_square=torch.zeros_like(slope))
        state["P_mean"].lerp_(slope, 1 - BETAS[0])
        state["P_square"].lerp_(slope.square(), 1 - BETAS[1])
        t = int(state["step"]) - 1
        root = (state["P_square"] / (1 - BETAS[1] ** t)).sqrt() + EPS
        change = state["P_mean"] / (1 - BETAS[0] ** t) / root
        state["P"] = self.broadcast(state["P"] * (1 - lr * self.decay) - lr * change)


def slope_of(P: Tensor, G: Tensor) -> Tensor:
    """The gradient (r, n) of |U P' P - U|^2 by P, for U = G / |G|."""
    U = G / G.norm().clamp_min(1e-30)
    R = U @ P.T
    rest = R @ P - U
    return 2 * (R.T @ rest + P @ rest.T @ U)

"""LoFT. Tastan et al., 2025, arXiv 2505.21289: AdamW of the weight, as near as a step of one factor comes to it.

With X the factor that moves (n, r), Y its partner (r, m), H the gradient of X: for B these are B and A, for A they are
A' and B'. K = (Y Y' + damping)^-1, so that g Y for g = H K is the weight's gradient, projected on the rows of Y.

    R = Y_before Y' K,    M <- b1 M R + (1 - b1) g,    S_i <- b2 R' S_i R + (1 - b2) g_i' g_i for row i
    X <- X - lr / (1 - b1^t) U Y' K,    U = M Y / (sqrt(V / (1 - b2^t)) + eps),    V_ij = y_j' S_i y_j

for the columns y_j of Y. So the moments are those of the weight's gradient, written anew for each partner. Those of
both factors are kept in each step; B moves in the first step, then A, in turn. S takes r^2 numbers for each input and
output.

The released code turns S the other way (R S R' for B), which does not write it for the new partner; in steps of A it
moves A before B's gradient is divided by it; and its weight decay has no learning rate: none of this is kept. The loop
clips the gradients of A and B, not those of the weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter
from lrft.adapters.pairs import PairOptimizer, refuse_factor
from lrft.adapters.part import Making, Part

DAMPING = {"A": 1e-6, "B": 1e-8}  # by the factor that moves, as released


@dataclass(frozen=True)
class Loft(Part):
    """Moves B and A in turn, each as AdamW would move the weight: moments are carried over to the new partner."""

    name: ClassVar[str] = "loft"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2505.21289"
    equation: ClassVar[str] = "B <- B - lr AdamW(G P_A) A' (A A')^-1, then the same of A"
    evidence: ClassVar[str] = (
        "optimiser steps compared with the released code, with its order of steps and its transposed S corrected on "
        "both sides"
    )
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "pair-gradient")
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("scale", "pair-rates", "magnitude", "restart", "steps", "entries")
    natural_scale: ClassVar[float | None] = 1.0

    eps: Annotated[float, Field(gt=0)] = 1e-4
    """Beside the root of the second moment, which is of the size of the weight's gradient. The authors' 1e-4."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        refuse_factor(self.name, adapter)
        return adapter

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        return LoftAdamW(groups, making.betas, self.eps)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        return (d + k) * (rank * rank + 2 * rank)


class LoftAdamW(PairOptimizer):
    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self.betas, self.eps = betas, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, A, B in self.pairs():
            of_B = self.change(self.state[B], B.grad, A, DAMPING["B"])
            of_A = self.change(self.state[A], A.grad.T, B.T, DAMPING["A"]).T
            moved, change = (B, of_B) if int(self.state[B]["step"]) % 2 else (A, of_A)
            moved.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * change)

    def change(self, state: dict[str, Tensor], H: Any, Y: Tensor, damping: float) -> Tensor:
        """What is taken from X (n, r) at a rate of 1, for its gradient H (n, r) and its partner Y (r, m)."""
        r, (b1, b2) = len(Y), self.betas
        if not state:
            state.update(step=torch.zeros(()), partner=Y.clone(memory_format=torch.contiguous_format))
            state.update(mean=torch.zeros_like(H), square=H.new_zeros(len(H), r, r))
        # Damped it has an inverse: nobody has to ask a GPU whether it was found.
        square = (Y @ Y.T).double() + damping * torch.eye(r, dtype=torch.float64, device=Y.device)
        K = torch.linalg.inv_ex(square).inverse.to(Y)
        g, R = H @ K, state["partner"] @ Y.T @ K
        t = int(state["step"].add_(1))
        state["partner"].copy_(Y)
        state["mean"] = (state["mean"] @ R).lerp_(g, 1 - b1)
        state["square"] = (R.T @ state["square"] @ R).lerp_(g[:, :, None] * g[:, None, :], 1 - b2)
        # V in one product: y' S y is that of S and y y', as vectors of r^2 numbers.
        V = state["square"].flatten(1) @ (Y[:, None] * Y[None]).flatten(0, 1)
        U = state["mean"] @ Y / ((V.clamp_min(0) / (1 - b2**t)).sqrt() + self.eps)
        return U @ Y.T @ K / (1 - b1**t)

"""LoRA-RITE. Yen et al., 2024, arXiv 2410.20625, as in the authors' code for torch.

With X (n, r) one of A' and B, H its gradient, and Q R the QR decomposition of the other one: U = H R^-1 is the gradient
as it would be for an orthonormal partner. With T = Q' Q_before:

    V <- b2 T V T' + (1 - b2) U' U / n,    M <- b1 M T' + (1 - b1) U V^(-1/2),    X <- X - lr (M R^-T + decay X)

b1 and b2 corrected for the start. All of it is the same for the pair (B S, S^-1 A): the path of B A does not depend on
how it is split. Inverses leave out the directions that a factor does not have, so that B = 0 moves first. A gradient U
whose root mean square is above `skip` is left out of the step; then all of them are clipped together. The loop's own
clipping comes before. Left out of the code: its escape of lost mass and its capping, both off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.pairs import PairOptimizer
from lrft.adapters.part import Making, Part


@dataclass(frozen=True)
class LoraRite(Part):
    """An optimiser of A and B whose steps do not depend on how the update is split into them."""

    name: ClassVar[str] = "lora-rite"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2410.20625"
    equation: ClassVar[str] = "A' <- A' - lr M R^-T, M the mean of U V^(-1/2), U = grad(A') R^-1 for B = Q R; B alike"
    evidence: ClassVar[str] = "twelve steps of three pairs compared with the released code, in float64"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "pair-gradient")
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("pair-rates", "magnitude", "restart", "entries")

    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of all gradients U together; 0: they are not clipped."""
    skip: Annotated[float, Field(ge=0)] = 1.0
    """Root mean square above which a gradient U is left out of a step; 0: none is. In the code, not in the paper."""
    balance: bool = False
    """After each step give A and B the same norm, without changing their product."""

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        return Rite(groups, self, making.betas, making.eps)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        return 2 * (d + k) * rank + 2 * rank * rank


class Side(NamedTuple):
    """One factor as X (n, r), the gradient U (n, r), and of the partner its Q (m, r) and the inverse of its R."""

    state: dict[str, Tensor]
    X: Tensor
    U: Tensor
    Q: Tensor
    inverse: Tensor


class Rite(PairOptimizer):
    def __init__(self, groups: list[dict[str, Any]], part: LoraRite, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups)
        self.part, self.betas, self.eps = part, betas, eps

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        found = []
        for group, A, B in self.pairs():
            of_A, of_B = torch.linalg.qr(A.T), torch.linalg.qr(B)
            found.append((group, self.side(A, A.T, A.grad.T, *of_B), self.side(B, B, B.grad, *of_A)))
        sides = [side for _, *both in found for side in both]
        shrink = 1.0
        if self.part.clip and sides:
            norm = torch.stack([side.U.norm() for side in sides]).norm()
            shrink = min(1.0, self.part.clip / max(norm.item(), 1e-30))
        for group, *both in found:
            changes = [self.change(side, shrink) + group["weight_decay"] * side.X for side in both]
            for side, change in zip(both, changes, strict=True):
                side.X.sub_(group["lr"] * change)
            if self.part.balance:
                sizes = [side.X.norm() + 1e-6 for side in both]
                for side, own, other in zip(both, sizes, reversed(sizes), strict=True):
                    side.X.mul_((other / own).sqrt())

    def side(self, p: Tensor, X: Tensor, H: Tensor, Q: Tensor, R: Tensor) -> Side:
        inverse = torch.linalg.pinv(R.double()).to(R)
        U = H @ inverse
        if self.part.skip and U.square().mean().sqrt() > self.part.skip:
            U = torch.zeros_like(U)
        return Side(self.state[p], X, U, Q, inverse)

    def change(self, side: Side, shrink: float) -> Tensor:
        """What is taken from X at a rate of 1, without decay. The state's next value is set."""
        state, X, U, Q, inverse = side
        r = len(inverse)
        if not state:
            state.update(step=torch.zeros(()), mean=X.new_zeros(X.shape))
            state.update(square=X.new_zeros(r, r), basis=X.new_zeros(Q.shape))
        T, U = Q.T @ state["basis"], shrink * U
        b1, b2 = (corrected(b, int(state["step"])) for b in self.betas)
        square = b2 * T @ state["square"] @ T.T + (1 - b2) * U.T @ U / len(X)
        values, vectors = torch.linalg.eigh((square + square.T).double() / 2)
        root = (vectors / (values.clamp_min(0).sqrt() + self.eps) @ vectors.T).to(U)
        state["step"] += 1
        state["square"] = (square + square.T) / 2
        state["mean"] = b1 * state["mean"] @ T.T + (1 - b1) * U @ root
        state["basis"].copy_(Q)
        return state["mean"] @ inverse.T


def corrected(beta: float, step: int) -> float:
    """Adafactor's way to correct a running mean for its start, at the step that follows `step` others."""
    return beta * (1 - beta**step) / (1 - beta ** (step + 1))

"""Flora. Hao, Cao, Mou, 2024, arXiv 2402.03293: momentum kept as a random projection. (Not FLoRA: `flora-batched`.)

G (m, n), m >= n, else its transpose. Adafactor's normalised gradient U; the momentum C (m, r) of U A, for A (n, r) with
entries from N(0, 1/r), so that E[A A'] = 1; W <- W - lr clip((1 - b) U + b C A'). Every so many steps A is drawn anew
and C carried over, C <- C A' A_new. A is made from its seed when it is needed and never kept. As released, the momentum
(m, n) itself is kept where m > 4 n, or r > n.

b is the first of the recipe's betas; 0 is Adafactor alone. With `accumulation: projected` the gradients of a step's
passes add up as C <- C + G A, for an A of the step, and the step is made with C A', which on average is their sum.

Left out of the released code: learning rates in proportion to the weight's size. Weight decay draws the change to zero,
so the weight to the base's; in the released code it draws the weight to zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.part import Making, Part, Run
from lrft.adapters.projected_adam import precise, turned_back, upright
from lrft.model.send import send
from lrft.utils import seeds

TINY = 1e-30  # Adafactor's, on the square of the gradient
LONGEST = 4  # sides of a matrix whose momentum is projected, the longer over the shorter


@dataclass(frozen=True)
class Flora(Part):
    """Trains whole weights by Adafactor, with a momentum that is kept as a small random projection."""

    name: ClassVar[str] = "flora"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2402.03293"
    equation: ClassVar[str] = "C <- b C + (1 - b) U A, W <- W - lr ((1 - b) U + b C A'), U = Adafactor(G)"
    evidence: ClassVar[str] = (
        "optimiser steps compared with the released optimiser for equal random draws, in float64; without momentum "
        "with transformers' Adafactor"
    )
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")
    takes_gradients: ClassVar[tuple[str, Any, str]] = ("accumulation", "projected", "sum")

    every: Annotated[float, Field(gt=0)] = 1000.0
    """Steps between random projections, or a fraction of the run when below 1. The released code has 1000."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest root mean square of a step over its learning rate."""
    decay: Annotated[float, Field(gt=0, le=1)] = 0.8
    """At step t the mean square of the gradient forgets t to the power of minus this: Adafactor's 0.8."""
    accumulation: Literal["whole", "projected"] = "whole"
    """How gradients add up over the passes of a step. projected: as a random projection to the rank, which takes less
    memory, is noisy, and needs one process and no clipping by the norm."""

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        return ProjectedMomentum(groups, self, making.betas[0], making.seed)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        return d + k + projected_numbers(d, k, rank)

    def gradient_numbers(self, d: int, k: int, rank: int) -> int:
        return projected_numbers(d, k, rank)

    def before_step(self, run: Run) -> None:
        period = run.steps(self.every)
        for group in run.optimizer.param_groups if run.optimizer else ():
            group["period"] = period


class ProjectedMomentum(torch.optim.Optimizer):
    """groups: as `optim.grouped` makes them, with "rank". A vector is a matrix of one column."""

    def __init__(self, groups: list[dict[str, Any]], part: Flora, momentum: float, seed: int) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "period": 1000})
        self.part, self.momentum, self.seed = part, momentum, seed
        self.sums: dict[Tensor, Tensor] = {}  # of the present step, projected
        self.known = {
            p: (name, group["rank"])
            for group in self.param_groups
            for name, p in zip(group["param_names"], group["params"], strict=True)
        }

    @torch.no_grad()
    def take(self, p: Tensor, gradient: Tensor) -> bool:
        """Add a pass's gradient to the projected sum, where there is one (`TakesGradients`)."""
        G = upright(gradient)
        if not is_projected(G.shape, self.known[p][1]):
            return False
        C = G @ self.of_sum(p, G)
        self.sums[p] = self.sums[p].add_(C) if p in self.sums else C
        return True

    def of_sum(self, p: Tensor, like: Tensor) -> Tensor:
        """The projection (n, r) of this step's sum of gradients."""
        name, rank = self.known[p]
        return self.drawn(f"{name}/sum", int(self.state.get(p, {}).get("step", 0)), like, rank)

    @torch.no_grad()
    def norms(self) -> dict[Tensor, Tensor]:
        """|C A'|^2 is the sum of C'C * A'A, both (r, r)."""
        found = {}
        for p in self.known:
            if p in self.sums:
                C, A = self.sums[p], self.of_sum(p, upright(p))
                found[p] = ((C.T @ C) * (A.T @ A)).sum().clamp_min(0.0).sqrt()
            elif p.grad is not None:
                found[p] = precise(p.grad).norm()
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for name, p in zip(group["param_names"], group["params"], strict=True):
                G = self.sums.pop(p) @ self.of_sum(p, upright(p)).T if p in self.sums else p.grad
                if G is not None:
                    G, state = upright(G), self.state[p]
                    change = self.normalised(state, G)
                    if self.momentum and is_projected(G.shape, group["rank"]):
                        change = self.carried(name, state, change, group["rank"], group["period"])
                    elif self.momentum:
                        change = self.averaged(state, change)
                    change /= (rms(change) / self.part.clip).clamp_min(1.0)
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(turned_back(change, p), alpha=-group["lr"])

    def normalised(self, state: dict[str, Tensor], G: Tensor) -> Tensor:
        """Adafactor's U (m, n): G over the root of its mean square, known by its rows' and columns' means."""
        if not state:
            state["step"] = torch.zeros(())
            state["rows"], state["columns"] = G.new_zeros(G.shape[0]), G.new_zeros(G.shape[1])
        state["step"] += 1
        new = math.pow(int(state["step"]), -self.part.decay)
        squares = G.square() + TINY
        state["rows"].lerp_(squares.mean(dim=1), new)
        state["columns"].lerp_(squares.mean(dim=0), new)
        rows = (state["rows"] / state["rows"].mean()).rsqrt()
        return G * rows[:, None] * state["columns"].rsqrt()

    def averaged(self, state: dict[str, Tensor], U: Tensor) -> Tensor:
        """The momentum itself (m, n), with U taken in."""
        M = state.setdefault("momentum", torch.zeros_like(U, memory_format=torch.contiguous_format))
        return M.lerp_(U, 1 - self.momentum).clone()

    def carried(self, name: str, state: dict[str, Tensor], U: Tensor, rank: int, period: int) -> Tensor:
        """U with the momentum (m, n). The momentum's next value, and its next projection, are set."""
        done = int(state["step"]) - 1
        A = self.drawn(name, done // period, U, rank)
        C = state.setdefault("momentum", U.new_zeros(U.shape[0], rank))
        change = (1 - self.momentum) * U + self.momentum * C @ A.T
        if (done + 1) % period == 0:
            new = self.drawn(name, (done + 1) // period, U, rank)
            C.copy_(C @ (A.T @ new))
            A = new
        C.lerp_(U @ A, 1 - self.momentum)
        return change

    def drawn(self, name: str, number: int, like: Tensor, rank: int) -> Tensor:
        """A (n, r) number so much. On the CPU, whose random numbers no other device has."""
        generator = torch.Generator().manual_seed(seeds.seed_of(self.seed, name, number))
        A = torch.randn(like.shape[1], rank, generator=generator, dtype=like.dtype) / math.sqrt(rank)
        return send(A, like.device)


def projected_numbers(d: int, k: int, rank: int) -> int:
    """How many numbers are kept of a matrix (d, k), projected or whole."""
    return max(d, k) * rank if is_projected((d, k), rank) else d * k


def is_projected(shape: Sequence[int], rank: int) -> bool:
    """Whether a matrix's momentum is kept as a projection: the released code rules out embeddings so."""
    return max(shape) <= LONGEST * min(shape) and rank <= min(shape)


def rms(t: Tensor) -> Tensor:
    return t.norm() / math.sqrt(t.numel())

"""LoRA-Pro. Wang et al., 2024, arXiv 2407.18242, sections 3.2 and 3.3.

With G the gradient by the weight, g_A = s B' G (r, k) and g_B = s G A' (d, r), the step of the weight is
s (B a + b A) for gradients a, b put in place of g_A, g_B. It is closest to G for

    a = (B' B)^-1 g_A / s^2 + X A,    b = (I - B (B' B)^-1 B') g_B (A A')^-1 / s^2 - B X,

and a, b are closest to g_A, g_B where X (r, r) solves (B' B) X + X (A A') = -(B' B)^-1 g_A A' / s^2. Inverses leave
out the directions that a factor does not have: where B is zero, a is zero and b is g_B (A A')^-1 / s^2, the paper's
first step.

AdamW then averages a and b; or (`moments: weight`, the released code's way) Adam's running means are those of the
weight's step E = s (B a + b A), as in full fine-tuning, and A and B are moved so that the weight's step is nearest to
what Adam makes of E: the formulas once more, with Adam's answer in place of G. The released code differs in its first
step, its count of steps, its clipping and a fixed s; this file follows the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class LoraPro(Part):
    """Changes the gradients of A and B so that their step moves the weight as nearly as it can along its own."""

    name: ClassVar[str] = "lora-pro"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2407.18242"
    equation: ClassVar[str] = "min |s (B a + b A) - G| over the gradients a of A and b of B, then AdamW"
    evidence: ClassVar[str] = "least-squares reference of the paper's formula"
    needs_adamw: ClassVar[str] = "makes Adam's step of the weight"
    slots: ClassVar[tuple[str, ...]] = ("pair-gradient",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("pair-rates", "magnitude")

    cutoff: Annotated[float, Field(gt=0, lt=1)] = 1e-8
    """Directions of a factor below this share of its mean square are taken as missing."""
    moments: Literal["factors", "weight"] = "factors"
    """What the running means are of: gradients of A and B, or the weight's step, which takes two numbers for each entry
    of the weight."""

    @cached_property
    def held(self) -> dict[nn.Parameter, Tensor]:
        """Gradients of the step that is being made."""
        return {}

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        if self.moments == "factors":
            for pairs in run.pairs():  # small decompositions are made together: one by one they would take as long
                closest(pairs, self.cutoff)
            return
        # AdamW passes over what has no gradient. Whether this step counts is known when it has been made.
        self.held.clear()
        for pair in (pair for pairs in run.pairs() for pair in pairs):
            for p in (pair.A, pair.B):
                self.held[p], p.grad = p.grad, None

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if self.moments == "factors":
            return
        for p, gradient in self.held.items():
            p.grad = gradient
        groups = {p: group for group in run.optimizer.param_groups for p in group["params"]}
        for pairs in run.pairs():
            closest(pairs, self.cutoff)
            for pair in pairs:
                group, s = groups[pair.A], pair.site.scale
                E = s * (pair.B @ pair.A.grad + pair.B.grad @ pair.A)
                u = answer(run.optimizer.state[pair.A], E, group["betas"], group["eps"])
                pair.A.grad, pair.B.grad = s * pair.B.T @ u, s * u @ pair.A.T
            closest(pairs, self.cutoff)
        for p in self.held:
            group = groups[p]
            p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * p.grad)

    def kept_numbers(self, d: int, k: int, rank: int) -> int:
        return 2 * d * k if self.moments == "weight" else 0


def answer(state: dict[str, Tensor], E: Tensor, betas: tuple[float, float], eps: float) -> Tensor:
    """What Adam makes of the gradient E (d, k), at a learning rate of 1.

    state: the optimiser's, of A, where restarts look for what they are to forget.
    """
    if not state:
        state.update(step=torch.zeros(()), mean=torch.zeros_like(E), square=torch.zeros_like(E))
    beta1, beta2 = betas
    count = int(state["step"].add_(1))
    state["mean"].lerp_(E, 1 - beta1)
    state["square"].mul_(beta2).addcmul_(E, E, value=1 - beta2)
    return state["mean"] / (1 - beta1**count) / ((state["square"] / (1 - beta2**count)).sqrt() + eps)


def closest(pairs: list[Any], cutoff: float) -> None:
    """Replace the gradients of pairs of one rank: the formulas above, in float64."""
    p, P = torch.linalg.eigh(torch.stack([square(pair.B.T) for pair in pairs]))
    q, Q = torch.linalg.eigh(torch.stack([square(pair.A) for pair in pairs]))
    p, q = without_small(p, cutoff), without_small(q, cutoff)
    by_B, by_A = (vectors * inverse(values)[:, None] @ vectors.mT for vectors, values in ((P, p), (Q, q)))
    both = torch.stack([pair.A.grad.double() @ pair.A.double().T / pair.site.scale**2 for pair in pairs])
    X = -P @ (P.mT @ (by_B @ both) @ Q * inverse(p[:, :, None] + q[:, None, :])) @ Q.mT
    for pair, B_inverse, A_inverse, x in zip(pairs, by_B, by_A, X, strict=True):
        A, B, g_A, g_B = (t.double() for t in (pair.A, pair.B, pair.A.grad, pair.B.grad))
        outside = g_B - B @ (B_inverse @ (B.T @ g_B))
        pair.A.grad.copy_(B_inverse @ g_A / pair.site.scale**2 + x @ A)
        pair.B.grad.copy_(outside @ A_inverse / pair.site.scale**2 - B @ x)


def square(rows: Tensor) -> Tensor:
    """rows rows' (r, r) of rows (r, n), in float64: its small eigenvalues are squares of small singular values."""
    wide = rows.double()
    return wide @ wide.T


def without_small(values: Tensor, cutoff: float) -> Tensor:
    return values.where(values > cutoff * values.mean(dim=-1, keepdim=True), 0.0)


def inverse(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1 / values, 0.0)

"""COAP. Xiao et al., 2024, arXiv 2412.00071: GaLore whose projection P follows gradient and momentum.

G (m, n), m >= n: W <- W - lr factor Adam(G P') P. Every so many steps P (r, n) makes one step of gradient descent on

    L(P) = mean (G P' P - G)^2 (1 - mean over rows of cos(M P, G)),    M (m, r) Adam's first moment

at a rate of 0.1, the gradient clipped to length 1; every `recompute`-th time it is made orthonormal anew: the right
singular vectors of Q' G, for Q R the QR decomposition of G P' (the first time, of G times random numbers).

The defaults are those of the released functions; their descriptions name others. Where a layer has fewer outputs than
inputs the transpose is taken, but for the cosines: rows are those of outputs there too, as released.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity, mse_loss

from lrft.adapters.projected_adam import Grid, ProjectedAdam, Projecting

RATE, LONGEST = 0.1, 1.0  # of a step of P, as released


@dataclass(frozen=True)
class Coap(Projecting):
    """GaLore with directions that are corrected by small steps towards gradient and momentum, seldom found anew."""

    name: ClassVar[str] = "coap"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2412.00071"
    equation: ClassVar[str] = (
        "W <- W - lr factor Adam(G P') P, P <- P - 0.1 grad of mean (G P'P - G)^2 (1 - cos(M P, G))"
    )
    evidence: ClassVar[str] = "twenty steps compared with the released code, for all projection updates"
    learning_rate: ClassVar[float] = 6e-5
    rate_source: ClassVar[str] = "docs/benchmark.md: three times full's best, or more"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    every: Annotated[float, Field(gt=0)] = 32.0
    """Steps between projection updates, or a fraction of the run when below 1."""
    recompute: Annotated[int, Field(ge=1)] = 5
    """Projection updates between full recomputations. 1: always recompute."""
    factor: Annotated[float, Field(gt=0)] = 1.0
    """Scaling factor of the step."""
    moments: Literal["keep", "rotate"] = "keep"
    """Adam's moments when the projection changes: keep (as for language models) or rotate."""

    def grid(self) -> Grid:
        return Grid(scale=self.factor)

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        return CoapAdam(self, groups, **given)


class CoapAdam(ProjectedAdam):
    def __init__(self, part: Coap, groups: list[dict[str, Any]], **given: Any) -> None:
        super().__init__(groups, part.grid(), **given)
        self.part = part
        members = [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
        self.turned = {name for name, p in members if p.ndim > 1 and p.shape[0] < p.shape[1]}

    def choose(self, name: str, number: int, state: dict[str, Tensor], G: Tensor, rank: int) -> None:
        before = state.get("P")
        if before is None:
            generator = torch.Generator().manual_seed(self.seed_of(name, number))
            sketch = torch.randn(rank, G.shape[1], generator=generator, dtype=G.dtype).to(G.device)
            state["P"] = self.broadcast(sketched(G, sketch))
        elif number % self.part.recompute == 0:
            state["P"] = self.broadcast(sketched(G, before))
        else:
            state["P"] = self.broadcast(descended(G, before, state["exp_avg"], 0 if name in self.turned else 1))
        if before is not None and self.part.moments == "rotate":
            T = before @ state["P"].T
            state["exp_avg"] = state["exp_avg"] @ T
            state["exp_avg_sq"] = (state["exp_avg_sq"].sqrt() @ T).square()


def sketched(G: Tensor, P: Tensor) -> Tensor:
    """The right singular vectors (r, n) of G (m, n), seen from the columns of G P'."""
    Q = torch.linalg.qr(G @ P.T).Q
    return torch.linalg.svd(Q.T @ G, full_matrices=False).Vh.contiguous()


def loss(G: Tensor, P: Tensor, M: Tensor, dim: int = 1) -> Tensor:
    """dim: along which the vectors lie whose cosines are taken."""
    return mse_loss(G @ P.T @ P, G) * (1 - cosine_similarity(M @ P, G, dim=dim).mean())


def descended(G: Tensor, P: Tensor, M: Tensor, dim: int = 1) -> Tensor:
    """P after one step down its loss."""
    with torch.enable_grad():
        own = P.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(G, own, M, dim), own)
    return P - RATE * slope * (LONGEST / (slope.norm() + 1e-6)).clamp_max(1.0)

"""RiemannLoRA and Riemannion, arXiv 2507.12142; low-rank lottery tickets, Schotthoefer et al., 2022, arXiv 2205.13571.

A step on the manifold of updates dW = B A of rank r, for the gradient G of the weight. With Q and P orthonormal bases
of the columns of B and the rows of A, the gradient on the manifold is

    L P' + Q N',    L = (I - Q Q') G P,    N = G' Q,        G P = grad(B) R_A^-1,    G' Q = grad(A)' R_B^-1

for B = Q R_B and A' = P R_A; no (d, k) matrix is made. The momentum is projected on where the step begins, averaged
with the gradient, and with `muon` replaced by its polar factor U V', projected again. dW less the step is then cut back
to rank r by its singular values, exactly, in a space of 2r directions. Of all balanced pairs B, A for it the nearest to
the old one is taken: the paper's, U S^(1/2) and S^(1/2) V', turns freely where singular values are equal, as at its
start.

A reconstruction of the papers' algorithms: no code of the authors is known. Kept is the momentum before its polar
factor is taken; the paper prints the one after, of length one in each direction, beside which a gradient is nothing: it
would keep its first directions for good. `momentum: none` with a `threshold` is the rank-adaptive integrator of the
lottery tickets in its parallel form (Ceruti, Kusch, Lubich, 2023, arXiv 2304.05660), which takes one gradient where
theirs takes two: singular values below it are set to zero, and may grow again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.adapter import Adapter
from lrft.adapters.calibration import CalibrationContext, gradient_triplets
from lrft.adapters.pairs import PairOptimizer, refuse_factor
from lrft.adapters.part import CalibrationResult, Making, Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class RiemannLora(Part):
    """Steps of the update itself, among the matrices of its rank, however it is split into A and B."""

    name: ClassVar[str] = "riemannlora"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2507.12142"
    equation: ClassVar[str] = "dW <- the r leading singular triplets of dW - lr H, H the momentum on the manifold"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "reconstruction of the papers' algorithms, compared with dense formulas"
    learning_rate: ClassVar[float] = 6e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: three times LoRA's best, or more"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "pair-gradient", "init")
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("scale", "pair-rates", "magnitude", "restart", "steps", "entries")
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    momentum: Literal["muon", "heavy-ball", "none"] = "muon"
    """muon: all directions of the momentum alike, the paper's second version; heavy-ball: its first; none: no mean."""
    init: Literal["loi", "zero"] = "loi"
    """loi: where the gradient on the manifold is nearest to the whole one; zero: LoRA's start."""
    size: Annotated[float, Field(gt=0)] = 0.01
    """Singular values of loi's start, from which the update is counted. Small in the paper; the default is ours."""
    rows: Annotated[int, Field(ge=1)] = 8
    """Rows of the training data whose gradient loi looks at."""
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the norm of dW in the small singular values that each step sets to zero. 0 keeps all r."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        refuse_factor(self.name, adapter)
        return adapter

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        for site in context.sites:
            most = min(site.d, site.k) // (2 if self.init == "loi" else 1)
            if site.rank > most:
                raise ValueError(
                    f"rank {site.rank} is too large for the {site.d} x {site.k} {site.name}: at most {most}"
                )
        if self.init == "zero":
            return {}
        found = gradient_triplets(context, self.rows, 1, seed_of(context.seed, self.name), times=2)
        return {name: {"U": U, "V": V} for name, (U, _, V) in found.items()}

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        r = adapter.site.rank
        adapter.B.copy_(math.sqrt(self.size) * seen["U"][:, :r])
        adapter.A.copy_(math.sqrt(self.size) * seen["V"][:, r : 2 * r].T)

    def make_optimizer(self, groups: list[dict[str, Any]], making: Making) -> torch.optim.Optimizer:
        return Riemannion(groups, self, making.betas[0])

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        return 2 * (d + k) * rank


class Riemannion(PairOptimizer):
    """Its state is the momentum as a product of `mean` (d, 2r) of B and `mean` (k, 2r) of A."""

    def __init__(self, groups: list[dict[str, Any]], part: RiemannLora, beta: float) -> None:
        super().__init__(groups)
        self.part, self.beta = part, 0.0 if part.momentum == "none" else beta

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, A, B in self.pairs():
            (Q, of_B), (P, of_A) = frame(B), frame(A.T)
            GP, N = B.grad @ of_A, A.grad.T @ of_B
            H = Tangent(GP - Q @ (Q.T @ GP), N, Q, P)
            if "mean" in self.state[B]:
                H = H.between(tangent(self.state[B]["mean"], self.state[A]["mean"], Q, P), self.beta)
            self.state[B]["mean"], self.state[A]["mean"] = H.factors()
            if self.part.momentum == "muon":
                H = tangent(*polar(*H.factors()), Q, P)
            keep, lr = 1 - group["lr"] * group["weight_decay"], group["lr"]
            if lr == 0:  # the balanced pair of an update of zero has no directions left to move in
                continue
            left = torch.cat([Q, H.L], dim=1)
            right = torch.cat([keep * A.T @ (B.T @ Q) - lr * H.N, -lr * P], dim=1)
            retract(A, B, left, right, self.part.threshold)


class Tangent:
    """L P' + Q N' at a point with the bases Q (d, r) and P (k, r), where L' Q = 0."""

    def __init__(self, L: Tensor, N: Tensor, Q: Tensor, P: Tensor) -> None:
        self.L, self.N, self.Q, self.P = L, N, Q, P

    def factors(self) -> tuple[Tensor, Tensor]:
        """(d, 2r) and (k, 2r), whose product it is."""
        return torch.cat([self.L, self.Q], dim=1), torch.cat([self.P, self.N], dim=1)

    def between(self, other: Tangent, share: float) -> Tangent:
        return Tangent(self.L.lerp(other.L, share), self.N.lerp(other.N, share), self.Q, self.P)


def tangent(left: Tensor, right: Tensor, Q: Tensor, P: Tensor) -> Tangent:
    """The projection of left right' on the tangent space of the bases Q and P."""
    L = left @ (right.T @ P)
    return Tangent(L - Q @ (Q.T @ L), right @ (left.T @ Q), Q, P)


def frame(X: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (n, r) of the columns of X, zero where X has fewer, and R^-1 for X = basis R."""
    basis, R = torch.linalg.qr(X)
    U, S, Vh = torch.linalg.svd(R.double())
    has = len(S) * torch.finfo(X.dtype).eps * S.max() < S
    return basis @ (U * has).to(X), (Vh.T * torch.where(has, 1 / S, 0.0)).to(X)


def polar(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """left right' with its singular values, but for zeros, set to one: as two factors."""
    (Q, R), (P, T) = torch.linalg.qr(left), torch.linalg.qr(right)
    U, S, Vh = torch.linalg.svd((R @ T.T).double())
    has = len(S) * torch.finfo(left.dtype).eps * S.max() < S
    return Q @ (U[:, : len(S)] * has).to(Q), P @ Vh[: len(S)].T.to(P)


def retract(A: Tensor, B: Tensor, left: Tensor, right: Tensor, threshold: float) -> None:
    """Set B A to the r leading singular triplets of left right': the balanced pair that is nearest to the old one."""
    (Q, R), (P, T) = torch.linalg.qr(left.double()), torch.linalg.qr(right.double())
    u, S, vh = torch.linalg.svd(R @ T.T)
    U, S, V = svd.signed(Q @ u[:, : len(A)], S[: len(A)], P @ vh[: len(A)].T)
    tail = S.square().flip(0).cumsum(0).flip(0).sqrt()
    root = torch.where(tail > threshold * tail[0], S, 0.0).sqrt()
    turn = root[:, None] * rotation(root[:, None] * (U.T @ B.double() + V.T @ A.T.double()))
    B.copy_(U @ turn)
    A.copy_((V @ turn).T)


def rotation(M: Tensor) -> Tensor:
    """The orthogonal matrix nearest to M; where M says nothing, as for new directions, nearest to the identity."""
    u, S, vh = torch.linalg.svd(M)
    silent = S.lt(1e-4 * S.max())
    left, right = u * silent, vh * silent[:, None]
    a, _, b = torch.linalg.svd(left.T @ right.T)
    return (u * ~silent) @ vh + left @ (a @ b) @ right

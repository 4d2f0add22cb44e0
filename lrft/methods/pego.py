"""PEGO. Hu et al., 2024, arXiv 2407.15085, as in the released code.

    loss + strength sum over layers of [ sum_i |W dW_i'|_1 + sum_{i<j} |dW_i dW_j'|_1 ],    dW_i = s B_i A_i

with N groups i of the r components and |.|_1 the sum of the absolute values: the rows of each group's update are to be
orthogonal to those of the weight and of the other groups. Both are products of two thin matrices, (W A_i') B_i' and
B_i (A_i A_j') B_j': no (d, k) matrix is made, and of the (d, d) one only some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, AdapterLinear
from lrft.adapters.part import Part, Run
from lrft.model.linear import dense

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Pego(Part):
    """Penalises updates along the rows of the weight, and groups of components that say the same as another group."""

    name: ClassVar[str] = "pego"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2407.15085"
    equation: ClassVar[str] = "loss + c (sum_i |W dW_i'|_1 + sum_{i<j} |dW_i dW_j'|_1)"
    evidence: ClassVar[str] = "penalty compared with the released formula, in float64"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "the released script"
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("init", "ranks")
    natural_scale: ClassVar[float | None] = 1.0

    groups: Annotated[int, Field(ge=1)] = 4
    """N; the recipe's rank is that of all groups together and must be a multiple (the authors: 4 groups of rank 4)."""
    strength: Annotated[float, Field(ge=0)] = 1e-3
    """c, as in the authors' scripts for a width of 768. A sum grows with the width: lower c for wider layers."""
    norm: Literal["l1", "squares"] = "l1"
    """l1 as published; squares sums squared entries instead, which costs next to nothing (ours)."""
    reduction: Literal["sum", "mean"] = "sum"
    """sum as published; mean divides each sum by its number of entries (ours)."""
    every: Annotated[int, Field(ge=1)] = 1
    """Apply the penalty every n-th step."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        rank = adapter.site.rank
        if rank % self.groups:
            raise ValueError(
                f"pego: {self.groups} groups do not divide rank {rank}: "
                f"use a multiple of {self.groups} as rank, or other groups"
            )
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        if run.step % self.every:
            return None
        terms = [term for name in run.adapters for term in self.terms(run.model, name)]
        return self.strength * torch.stack(terms).sum()

    def terms(self, model: nn.Module, name: str) -> Iterator[Tensor]:
        layer: Any = model.get_submodule(name)
        if not isinstance(layer, AdapterLinear):
            raise TypeError(f"{name} has no adapter")
        own = layer.adapter.tensors()
        A = own["A"].chunk(self.groups)
        B = (layer.adapter.site.scale * own["B"]).chunk(self.groups, dim=1)
        W = dense(layer.base).to(own["A"].dtype)
        images = (W @ own["A"].T).split(len(A[0]), dim=1)
        for image, B_i in zip(images, B, strict=True):
            yield self.size(image, B_i)
        for i, j in combinations(range(self.groups), 2):
            yield self.size(B[i] @ (A[i] @ A[j].T), B[j])

    def size(self, P: Tensor, Q: Tensor) -> Tensor:
        """The norm of P Q' for P (m, r), Q (n, r)."""
        total = ((P.T @ P) * (Q.T @ Q)).sum() if self.norm == "squares" else AbsoluteSum.apply(P, Q)
        return total / (len(P) * len(Q)) if self.reduction == "mean" else total


class AbsoluteSum(torch.autograd.Function):
    """sum |P Q'| for P (m, r), Q (n, r): value and gradients from some rows of the product at a time, none kept."""

    @staticmethod
    def forward(ctx: Any, P: Tensor, Q: Tensor) -> Tensor:
        of_P, of_Q = torch.empty_like(P), torch.zeros_like(Q)
        for first in range(0, len(P), ROWS_AT_ONCE):
            some = P[first : first + ROWS_AT_ONCE]
            signs = (some @ Q.T).sign_()
            of_P[first : first + ROWS_AT_ONCE] = signs @ Q
            of_Q += signs.T @ some
        ctx.save_for_backward(of_P, of_Q)
        return (of_P * P).sum()  # sum sign(P Q') o (P Q'), without another look at the product

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        of_P, of_Q = ctx.saved_tensors
        return slope * of_P, slope * of_Q

"""Condition of the update. Savostianova et al., 2023, arXiv 2306.01485, whose constraint is a penalty here: ours.

    loss + strength sum over layers and i of max(0, |s_i - m| - tau m)^2,    s_i the singular values of dW = s B A

with m their mean: no cost while all lie within (1 - tau) m and (1 + tau) m, so that the condition of the update is at
most (1 + tau) / (1 - tau). The paper holds the factors of a whole low-rank weight on that set exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Factors
from lrft.adapters.part import Part, Run
from lrft.methods.nuclear_norm import factors_of


@dataclass(frozen=True)
class OrthonormalConstraint(Part):
    """Draws the singular values of the update towards their mean: near a multiple of an orthonormal matrix."""

    name: ClassVar[str] = "orthonormal-constraint"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2306.01485"
    equation: ClassVar[str] = "loss + c sum_i max(0, |s_i - m| - tau m)^2, s the singular values of dW, m their mean"
    evidence: ClassVar[str] = "reconstruction: the paper's constraint as a penalty on the update"
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    strength: Annotated[float, Field(ge=0)] = 0.1
    """c; ours."""
    tau: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the mean within which singular values are free. The paper tries 0, which is orthonormal, to 0.5."""

    def loss(self, run: Run) -> Tensor | None:
        terms = [self.term(singular_values(factors_of(adapter))) for adapter in run.adapters.values()]
        return self.strength * torch.stack(terms).sum()

    def term(self, values: Tensor) -> Tensor:
        m = values.mean()
        return ((values - m).abs() - self.tau * m).clamp_min(0).square().sum()


def singular_values(factors: Factors) -> Tensor:
    """Singular values of s B A, with gradients u_i v_i': the decomposition's own do not exist at equal values."""
    B, A, s = factors
    with torch.no_grad():
        Q, R = torch.linalg.qr(B)
        P, T = torch.linalg.qr(A.T)
        u, _, vh = torch.linalg.svd(R @ T.T, full_matrices=False)
        U, V = Q @ u, P @ vh.T
    return s * ((U.T @ B) * (A @ V).T).sum(dim=1)

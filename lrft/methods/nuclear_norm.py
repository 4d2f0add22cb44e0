"""A nuclear norm penalty on the update. Scarvelis, Solomon, 2024, arXiv 2405.14544, applied to dW = s B A.

    |dW|_* = min over factors of s (|A|^2 + |B|^2) / 2,    with equality where A and B are balanced

The paper's own subject is the Jacobian of a network; this is its identity for the two factors of a LoRA. AdamW's weight
decay is not this term: it is not part of the gradient that Adam divides by its size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta, Factors, Site
from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class NuclearNorm(Part):
    """Adds the sum of the update's singular values to the loss, or a bound on it: the update tends to a low rank."""

    name: ClassVar[str] = "nuclear-norm"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2405.14544"
    equation: ClassVar[str] = "loss + c sum over layers |dW|_*, at most s (|A|^2 + |B|^2) / 2"
    evidence: ClassVar[str] = "penalty compared with the singular values of the dense update"
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    strength: Annotated[float, Field(ge=0)] = 1e-4
    """c, weight of the penalty; no published value for adapters, default chosen by lrft."""
    form: Literal["bound", "exact"] = "bound"
    """bound: the squares of A and B; exact: the singular values themselves, by a decomposition of r x r."""
    after: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the run without the term: the bound would shrink A before B has grown. The default is ours."""

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        if not offset_from_init or self.form == "exact":
            return []
        return ["nuclear-norm: A and B do not start at zero here, and the bound is loose; consider form: exact."]

    def loss(self, run: Run) -> Tensor | None:
        if run.step < self.after * run.total_steps:
            return None
        measure = nuclear_norm if self.form == "exact" else bound
        return self.strength * torch.stack([measure(factors_of(a)) for a in run.adapters.values()]).sum()


def factors_of(adapter: Adapter) -> Factors:
    """Factors of the outermost update that is added to the weight, whatever wraps it."""
    delta = next(module for module in adapter.modules() if isinstance(module, Delta))
    factors = delta.factors()
    if factors is None:
        raise TypeError(f"{adapter.site.name}: the update has no factors")
    return factors


def bound(factors: Factors) -> Tensor:
    """s (|A|^2 + |B|^2) / 2, at least the nuclear norm of s B A."""
    B, A, s = factors
    return s / 2 * (A.square().sum() + B.square().sum())


def nuclear_norm(factors: Factors) -> Tensor:
    """The sum of the singular values of s B A, with the subgradient U V', zero where a singular value is zero.

    The gradient does not go through the decomposition, which has none for equal singular values: sum(U' dW V) with U
    and V held fixed is the same number with the same gradient.
    """
    B, A, s = factors
    with torch.no_grad():
        Q, R = torch.linalg.qr(B)
        P, T = torch.linalg.qr(A.T)
        u, S, vh = torch.linalg.svd(R @ T.T, full_matrices=False)
        rounding = len(S) * torch.finfo(S.dtype).eps * S.max()
        u *= S.gt(rounding)
        U, V = Q @ u, P @ vh.T
    return s * ((U.T @ B) * (A @ V).T).sum()

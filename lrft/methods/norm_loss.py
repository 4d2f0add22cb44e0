"""Norm loss. Georgiou et al., 2021, arXiv 2103.06583, whose rows have norm one; for adapters a reconstruction.

    of: weight     loss + strength sum over rows (|w + dw| - |w|)^2: the norms of the frozen weight are kept, softly
    of: factors    loss + strength sum over rows a of A and columns b of B of (1 - |a|)^2 + (1 - |b|)^2

The update itself must be free to be small, so its norms are not drawn anywhere. Norms of rows of W + s B A come from
products with A and B; the dense sum is not made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Factors
from lrft.adapters.part import Part, Run
from lrft.methods.nuclear_norm import factors_of
from lrft.model.linear import dense

TINY = 1e-12  # inside of the root: a row of zeros has a slope of zero


@dataclass(frozen=True)
class NormLoss(Part):
    """Holds the norms of the adapted weight's rows near those of the frozen one; or the factors' near one."""

    name: ClassVar[str] = "norm-loss"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2103.06583"
    equation: ClassVar[str] = "loss + c sum over rows (|w + dw| - |w|)^2"
    evidence: ClassVar[str] = "the paper's form on the factors; on: weight is a reconstruction"
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    strength: Annotated[float, Field(ge=0)] = 0.01
    """c, about that of the paper's images."""
    of: Literal["weight", "factors"] = "weight"
    """Whose norms: rows of the adapted weight towards the frozen one's, or rows of A and columns of B towards one."""

    def loss(self, run: Run) -> Tensor | None:
        terms = []
        for name, adapter in run.adapters.items():
            if self.of == "factors":
                own = adapter.tensors()
                terms += [(1 - norms(rows.square().sum(dim=1))).square().sum() for rows in (own["A"], own["B"].T)]
            else:
                layer: Any = run.model.get_submodule(name)
                terms.append(moved(dense(layer.base).to(adapter.site.dtype), factors_of(adapter)))
        return self.strength * torch.stack(terms).sum()


def norms(squares: Tensor) -> Tensor:
    return (squares.clamp_min(0) + TINY).sqrt()


def moved(W: Tensor, factors: Factors) -> Tensor:
    """sum over rows of (|w + dw| - |w|)^2 for W (d, k)."""
    return (norms(row_squares(W, factors)) - norms(W.square().sum(dim=1))).square().sum()


def row_squares(W: Tensor | None, factors: Factors) -> Tensor:
    """The squared norms (d,) of the rows of W + s B A, or of s B A alone; rounding may make them less than zero."""
    B, A, s = factors
    own = s * s * ((B @ (A @ A.T)) * B).sum(dim=1)
    return own if W is None else W.square().sum(dim=1) + 2 * s * ((W @ A.T) * B).sum(dim=1) + own

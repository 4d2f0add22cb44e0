"""Riemannian preconditioned LoRA. Zhang, Pilanci, 2024, arXiv 2402.02347: scaled AdamW. PEFT leaves 1/s^2 out, as here.

Under a step of plain gradient descent on A and B the weight moves along P_B G + G P_A: G is the gradient by the weight,
P_A and P_B project on the rows of A and the columns of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class Preconditioned(Part):
    """Divides the gradient of each factor by the square of the other, so that their sizes do not set the step."""

    name: ClassVar[str] = "preconditioned"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2402.02347"
    equation: ClassVar[str] = "(B' B + damping)^-1 g_A, g_B (A A' + damping)^-1, then AdamW"
    evidence: ClassVar[str] = "optimiser steps compared with PEFT 0.21 create_riemannian_optimizer"
    slots: ClassVar[tuple[str, ...]] = ("pair-gradient",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("pair-rates",)

    damping: Annotated[float, Field(gt=0)] = 0.01
    """Added to the squares before they are inverted: keeps the step finite where a factor is small. 0.01 as in PEFT."""

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for pairs in run.pairs():  # small inverses are made together: one by one they would take as long
            of_A = self.inverses([pair.B.T for pair in pairs])
            of_B = self.inverses([pair.A for pair in pairs])
            for pair, left, right in zip(pairs, of_A, of_B, strict=True):
                pair.A.grad.copy_(left @ pair.A.grad)
                pair.B.grad.copy_(pair.B.grad @ right)

    def inverses(self, factors: list[Tensor]) -> Tensor:
        """(F F' + damping)^-1 (n, r, r) for n factors F (r, any width), made in float64."""
        squares = torch.stack([F @ F.T for F in factors]).double()
        squares.diagonal(dim1=1, dim2=2).add_(self.damping)
        return torch.linalg.inv(squares).to(factors[0].dtype)

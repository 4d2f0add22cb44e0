"""F-GR. Karakida et al., 2022, arXiv 2210.02720, algorithm 1: the gradient norm of the loss as a penalty.

    L + gamma / 2 |grad L|^2, whose gradient g + gamma H g is taken by a finite difference along g:
    g + (gamma / eps) (g(theta + eps g) - g),  eps > 0

The paper finds that a large ascent step eps is better than the exact product, not only cheaper. Its repository holds
no code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses, combined, displaced
from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class GradientRegularization(Part):
    """Penalises the norm of the gradient, by a second pass a little uphill."""

    name: ClassVar[str] = "gradient-regularization"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2210.02720"
    equation: ClassVar[str] = "the step's gradient is g + (gamma / eps) (g(theta + eps g) - g)"
    evidence: ClassVar[str] = "from the paper: against autograd's second derivatives for small eps"
    slots: ClassVar[tuple[str, ...]] = ("gradient",)

    gamma: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty. The paper tries 1e-4 to 0.1."""
    eps: Annotated[float, Field(gt=0)] = 0.1
    """Length of the ascent step over the gradient. The paper tries 0.01 to 0.5."""

    @property
    def further_passes(self) -> FurtherPasses:
        return FurtherPasses(own=1)

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        with displaced(combined((self.eps, gradient))):
            uphill = passes.own()
        weight = self.gamma / self.eps
        return combined((1 - weight, gradient), (weight, uphill))

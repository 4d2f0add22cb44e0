"""AMP. Zheng et al., 2020, arXiv 2010.04925: minimises the highest loss in a ball around the trained tensors.

    d <- d + ascent * g(theta + d), drawn back into |d| <= eps, some times from d = 0;  then a step along g(theta + d)

The authors' code takes the gradient as it is and gives each tensor a ball of its own. With `normalized` the step has
the length eps, whatever the gradient's; with one such step and one ball for all it is SAM (Foret et al., 2020, arXiv
2010.01412), offered by that name. Their eps of 0.5 is for networks trained from scratch, whose tensors are large; here
the default is SAM's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses, combined, displaced, norm
from lrft.adapters.part import Part, Run

TINY = 1e-12  # where a gradient is zero


@dataclass(frozen=True)
class AdversarialModelPerturbation(Part):
    """Takes the gradient where the loss is highest nearby, which some steps uphill have found."""

    name: ClassVar[str] = "adversarial-model-perturbation"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2010.04925"
    equation: ClassVar[str] = "the step's gradient is g(theta + d), d towards the highest loss with |d| <= eps"
    evidence: ClassVar[str] = "steps of the released code, in float64; sam against its formula"
    slots: ClassVar[tuple[str, ...]] = ("gradient",)

    eps: Annotated[float, Field(ge=0)] = 0.05
    """Radius of the ball. The authors' 0.5 is for networks trained from scratch; 0.05 is SAM's."""
    steps: Annotated[int, Field(ge=1)] = 1
    """Steps uphill, each with a pass of its own. The authors' default."""
    ascent: Literal["gradient", "normalized"] = "gradient"
    """A step uphill: `ascent_rate` times the gradient, or times eps along it."""
    ascent_rate: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of the ascent. The authors' inner_lr."""
    ball: Literal["tensor", "all"] = "tensor"
    """Whose length the radius bounds: each tensor's by itself, as in the authors' code, or that of all together."""

    @property
    def further_passes(self) -> FurtherPasses:
        return FurtherPasses(own=self.steps if self.eps else 0)

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        if not self.eps:
            return gradient
        change: Gradients = {}
        for _ in range(self.steps):
            change = self.inside(combined((1.0, change), (self.length(gradient), gradient)))
            with displaced(change):
                gradient = passes.own()
        return gradient

    def length(self, gradient: Gradients) -> float:
        """Length of the step uphill, over that of the gradient."""
        return self.ascent_rate if self.ascent == "gradient" else self.ascent_rate * self.eps / (norm(gradient) + TINY)

    def inside(self, change: Gradients) -> Gradients:
        """`change`, or the nearest in the ball."""
        if self.ball == "all":
            return combined((min(1.0, self.eps / (norm(change) + TINY)), change))
        return {p: d * (self.eps / (d.norm() + TINY)).clamp(max=1.0) for p, d in change.items()}

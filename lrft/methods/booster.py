"""Booster. Huang et al., 2024, arXiv 2409.01586: alignment that a later harmful fine-tuning undoes less.

    loss f + lam (h(w) - h(w - alpha grad h / |grad h|)), without second derivatives:
    g_f + lam (g_h(w) - g_h(w - alpha g_h / |g_h|))

h is the loss on harmful rows, f that on the recipe's own. The released code adds the step back to restore w and draws
other dropout masks for the second pass over the harmful rows; here w is restored to the bit and the masks are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses, combined, displaced, norm
from lrft.adapters.part import Part, Run

TINY = 1e-7  # as in the released code


@dataclass(frozen=True)
class Booster(Part):
    """Keeps a step towards harmful rows from lowering their loss much."""

    name: ClassVar[str] = "booster"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2409.01586"
    equation: ClassVar[str] = "loss + lam (h(w) - h(w - alpha grad h / |grad h|)), h the loss on harmful rows"
    evidence: ClassVar[str] = "three steps of the released trainer's rule, in float64"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "the authors' script for Llama-2-7B at rank 32"
    slots: ClassVar[tuple[str, ...]] = ("gradient",)

    harmful: str = ""
    """The file of harmful rows, read as data.train is. They are never trained on. As many a step as it has rows."""
    lam: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the term. The authors' script; the paper's lambda."""
    length: Annotated[float, Field(gt=0)] = 0.1
    """Length of the step towards the harmful rows, over all trained tensors. The authors' script; the paper's alpha."""

    @property
    def auxiliary_rows(self) -> str:
        if not self.harmful:
            raise ValueError("needs harmful rows: name their file, {booster: {harmful: FILE}}")
        return self.harmful

    @property
    def further_passes(self) -> FurtherPasses:
        return FurtherPasses(auxiliary=2)

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        before = passes.auxiliary()
        with displaced(combined((-self.length / (norm(before) + TINY), before))):
            after = passes.auxiliary()
        return combined((1.0, gradient), (self.lam, before), (-self.lam, after))

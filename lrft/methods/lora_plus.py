"""LoRA+. Hayou et al., 2024, arXiv 2402.12354."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lrft.adapters.adapter import Site
from lrft.adapters.part import Part


@dataclass(frozen=True)
class LoraPlus(Part):
    """Gives B a larger learning rate than A."""

    name: ClassVar[str] = "lora+"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2402.12354"
    equation: ClassVar[str] = "lr(B) = ratio lr(A)"
    evidence: ClassVar[str] = "parameter groups compared with PEFT 0.21 create_loraplus_optimizer"
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "docs/benchmark.md: a third of LoRA's best, of A; B has ratio times as much"
    slots: ClassVar[tuple[str, ...]] = ("pair-rates",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    ratio: Annotated[float, Field(gt=0)] = 16.0
    """Learning rate of B relative to A. 16 is the paper's starting point; lower the base rate with it."""

    def lr_factors(self) -> dict[str, float]:
        return {"B": self.ratio}

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        # Under Adam with B = 0, the factor s at one rate equals s = 1 with the ratio multiplied by s.
        effective = max(site.scale for site in sites) * self.ratio
        said = []
        if effective > 64:
            said.append(
                f"lora+: the factor multiplies the ratio of learning rates: {effective:g} in effect. "
                "Consider a smaller ratio, alpha or learning rate."
            )
        if offset_from_init:
            said.append(
                "lora+: B does not start at zero here, which is what the ratio is for; the neutral choice is ratio 1."
            )
        return said

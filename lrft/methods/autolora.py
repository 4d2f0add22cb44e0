"""AutoLoRA. Zhang et al., 2024, arXiv 2403.09113, NAACL 2024: ranks by meta-learning.

A and B learn on part of the training rows, the selection variables on the rest, through a step of A and B
(`lrft.adapters.two_levels`). A component counts whose share of the softmax is at least 1 / r. The paper then throws A
and B away and trains LoRA with these ranks on all rows: a second run, with `autolora-ranks`.

The released scripts count by softmax or by raw variables; here by softmax, as the forward pass does. They start the
variables at 1 or 0, which is the same for a softmax, and give their Adam a first beta of 0.5; here it is the recipe's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses
from lrft.adapters.part import Method, Run
from lrft.adapters.two_levels import PASSES, two_level_gradient
from lrft.methods.lora import LoraAdapter


@dataclass(frozen=True)
class Autolora(Method):
    """Learns on rows of their own which components of each layer matter, by a softmax over them."""

    name: ClassVar[str] = "autolora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2403.09113"
    equation: ClassVar[str] = "W + (alpha / r) B diag(softmax(selection)) A, selection trained on other rows than A, B"
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA or merged; its ranks for a second run"
    evidence: ClassVar[str] = "forward and steps of both levels by the rules of the released code, in float64"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "the authors' search, RoBERTa-base at rank 8, both levels"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks", "gradient")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    conflicts: ClassVar[tuple[str, ...]] = ("optimizer",)

    share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the training rows that train the selection variables alone. The authors' script."""

    @property
    def auxiliary_rows(self) -> float:
        return self.share

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return SelectedPair(site)

    @property
    def further_passes(self) -> FurtherPasses:
        return PASSES

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        return two_level_gradient(
            gradient, passes, [adapter.tensors()["selection"] for adapter in run.adapters.values()]
        )


class SelectedPair(LoraAdapter):
    """LoRA's A and B, and selection (r,), zero: all components alike."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.selection = nn.Parameter(torch.zeros(site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * (self.B * self.selection.softmax(0)) @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A) * self.selection.softmax(0), self.B)

    def factors(self) -> Factors:
        return Factors(self.B * self.selection.softmax(0), self.A, self.site.scale)


def selected(selection: Tensor) -> int:
    """How many components count: at least one, because the largest share of r is at least 1 / r."""
    shares = selection.double().softmax(0)
    return int((shares >= 1 / len(shares) - 1e-9).sum())

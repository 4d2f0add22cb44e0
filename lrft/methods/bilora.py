"""BiLoRA. Qiang et al., 2024, arXiv 2403.13037: singular values and singular vectors learn on different rows.

AdaLoRA's triplets without pruning: A and B, near orthonormal by a penalty, learn on part of the training rows; the
gate on the rest, through a step of A and B (`lrft.adapters.two_levels`). The gate is the paper's real-valued one. No
code is published: the constants and the hypergradient, which is that of the same group's AutoLoRA, are a
reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair
from lrft.adapters.gradients import FurtherPasses, Gradients, StepPasses
from lrft.adapters.part import Method, Run
from lrft.adapters.two_levels import PASSES, two_level_gradient


@dataclass(frozen=True)
class Bilora(Method):
    """Trains singular vectors on part of the rows and singular values on the rest, against over-fitting."""

    name: ClassVar[str] = "bilora"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2403.13037"
    equation: ClassVar[str] = "W + (alpha / r) B diag(g) A, g trained on other rows than A and B"
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA (unchanged) or merged model"
    evidence: ClassVar[str] = "a reconstruction; its two levels as in autolora"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "as adalora, whose update this is"
    slots: ClassVar[tuple[str, ...]] = ("update", "gradient")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    conflicts: ClassVar[tuple[str, ...]] = ("optimizer",)

    share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the training rows that train the gate alone. A reconstruction."""
    orthogonality: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty, averaged over all A and B. That of AdaLoRA's authors' scripts."""

    @property
    def auxiliary_rows(self) -> float:
        return self.share

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        adapter = GatedPair(site, trains_gate=True)
        nn.init.normal_(adapter.A, std=0.02)
        nn.init.normal_(adapter.B, std=0.02)
        return adapter

    def loss(self, run: Run) -> Tensor | None:
        gaps = []
        for adapter in run.adapters.values() if self.orthogonality else ():
            for rows in (adapter.tensors()["A"], adapter.tensors()["B"].T):
                gaps.append((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).square().sum())
        return self.orthogonality * torch.stack(gaps).mean() if gaps else None

    @property
    def further_passes(self) -> FurtherPasses:
        return PASSES

    def compose_gradient(self, run: Run, gradient: Gradients, passes: StepPasses) -> Gradients:
        return two_level_gradient(gradient, passes, [adapter.tensors()["gate"] for adapter in run.adapters.values()])

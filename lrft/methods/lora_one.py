"""LoRA-One. Zhang, Liu, Chen, 2025, arXiv 2502.01235: its start.

The released code divides the singular values by the largest, its read-me does not: as in the code. The paper's
preconditioned steps, of which no code was released, are those of [lora-one, preconditioned].

Each trained token counts the same in G, as in training; the released code averages the rows' mean losses, in which a
token of a short row counts more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.calibration import CalibrationContext, gradient_triplets
from lrft.adapters.part import CalibrationResult, Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class LoraOne(Part):
    """Starts with one small step against the leading part of the gradient, split evenly between A and B.

    The step's size is the factor s over gamma, whatever the size of the gradient. The paper has the factor of rslora
    beside it: [lora-one, rslora].
    """

    name: ClassVar[str] = "lora-one"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2502.01235"
    equation: ClassVar[str] = "-G = U S V', A0 = sqrt(S / (gamma S_1)) V', B0 = U sqrt(S / (gamma S_1))"
    evidence: ClassVar[str] = "init compared with the SVD of full gradients by the released formula"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    init_changes_output: ClassVar[bool] = True

    rows: Annotated[int, Field(ge=1)] = 8
    """Calibration rows for the gradient. 8 as in the released recipe."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """Power iterations, each with two passes over the calibration rows. 1 is close to the exact SVD."""
    gamma: Annotated[float, Field(gt=0)] = 128.0
    """The initial update has size s / gamma: larger gamma, smaller update. 128 as in the released recipe."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        found = gradient_triplets(context, self.rows, self.rounds, seed_of(context.seed, self.name), times=1)
        return {name: {"U": U, "S": S, "V": V} for name, (U, S, V) in found.items()}

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        svd.refuse_beyond(W0, adapter.site.rank)
        U, S, V = seen["U"], seen["S"], seen["V"]
        root = (S / (self.gamma * S[0])).sqrt()
        # Where G has no such direction, both sides would be zero and never move: A takes v at full length, B zero.
        none = torch.finfo(S.dtype).eps * S[0] >= S
        adapter.A.copy_(root.masked_fill(none, self.gamma**-0.5)[:, None] * V.T)
        adapter.B.copy_(-U * root.masked_fill(none, 0.0))

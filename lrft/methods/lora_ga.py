"""LoRA-GA. Wang, Yu, Li, 2024, arXiv 2407.05000, section 3: direction ArB2r and scale "stable" of the released code.

PEFT 0.21 differs: it multiplies B by the gradient's singular values and A by no factor, so that its start depends on
the size of the loss and its first step is not along the gradient's leading part. Here it is the paper's.

Each trained token counts the same in G, as in training; the released code averages the rows' mean losses, in which a
token of a short row counts more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from lrft.adapters.calibration import CalibrationContext, gradient_triplets
from lrft.adapters.part import CalibrationResult, Part
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class LoraGa(Part):
    """Starts A and B from the gradient's leading directions, so that the first step is nearly full fine-tuning's.

    The update is counted from that start. The paper has the factor of rslora beside it: [lora-ga, rslora].
    """

    name: ClassVar[str] = "lora-ga"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2407.05000"
    equation: ClassVar[str] = "G = U S V', c = d^(1/4) / sqrt(gamma), A0 = c V[:, :r]', B0 = c U[:, r:2r]"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = (
        "init compared with the SVD of full gradients by the released formula; directions compared with PEFT 0.21"
    )
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "arXiv 2407.05000: 2e-5 for LLaMA-2-7B with a factor three times as large"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    conflicts: ClassVar[tuple[str, ...]] = ("pair-rates",)
    offset_from_init: ClassVar[bool] = True

    rows: Annotated[int, Field(ge=1)] = 8
    """Calibration rows for the gradient. 8 as in the released recipe."""
    rounds: Annotated[int, Field(ge=0)] = 1
    """Power iterations, each with two passes over the calibration rows. 1 is close to the exact SVD."""
    gamma: Annotated[float, Field(gt=0)] = 16.0
    """Init scale is 1 / gamma: larger gamma, smaller init. 16 as in the paper."""

    def calibrate(self, context: CalibrationContext) -> CalibrationResult:
        found = gradient_triplets(context, self.rows, self.rounds, seed_of(context.seed, self.name), times=2)
        return {name: {"U": U, "V": V} for name, (U, _, V) in found.items()}

    def initialize_from(self, adapter: Any, W0: Tensor, seen: Mapping[str, Tensor]) -> None:
        r, most = adapter.site.rank, min(W0.shape)
        if 2 * r > most:
            raise ValueError(
                f"rank {r} takes {2 * r} directions of the gradient, which has {most}: at most {most // 2}"
            )
        size = len(W0) ** 0.25 / math.sqrt(self.gamma)
        adapter.A.copy_(size * seen["V"][:, :r].T)
        adapter.B.copy_(size * seen["U"][:, r : 2 * r])

"""AdamW of bitsandbytes with its state in 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer


@dataclass(frozen=True)
class AdamW8bit(Optimizer):
    """AdamW with its state in 8 bits (Dettmers et al., arXiv 2110.02861) as bitsandbytes has it.

    A tensor of fewer than 4096 numbers keeps 32 bits.
    """

    name: ClassVar[str] = "adamw-8bit"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True

    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit as Made

        return Made(groups, betas=self.betas, eps=self.eps)

    def state_bytes(self, parameter: Tensor) -> int:
        return 2 * parameter.numel()

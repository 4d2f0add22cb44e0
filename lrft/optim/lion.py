"""Lion of bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu, refuse_paging_without_gpu
from lrft.registry import Betas


@dataclass(frozen=True)
class Lion(Optimizer):
    """Lion (Chen et al., arXiv 2302.06675) as bitsandbytes has it: the sign of a mean of gradients.

    Its authors take a third to a tenth of AdamW's learning rate, and three to ten times the weight decay.
    """

    name: ClassVar[str] = "lion"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True
    rates: ClassVar[str] = "takes a third to a tenth of that"

    betas: Betas = (0.9, 0.99)
    """Decay of the mean in the step, and of the mean that is kept."""
    bits: Literal[8, 32] = 32
    """Bits of a number of the state."""
    paged: bool = False
    """Moves state to the machine's memory while a GPU's is full."""

    def refuse(self, gpu: bool) -> None:
        """Raises UsageError for paging without a GPU."""
        if self.paged:
            refuse_paging_without_gpu(gpu, self.name, "Set paged: false.")

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        self.refuse(on_gpu(groups))
        from bitsandbytes.optim import Lion8bit, Lion32bit

        made = {8: Lion8bit, 32: Lion32bit}[self.bits]
        return made(groups, betas=self.betas, is_paged=self.paged)

    def state_bytes(self, parameter: Tensor) -> int:
        return parameter.numel() * self.bits // 8

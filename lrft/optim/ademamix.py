"""AdEMAMix of bitsandbytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu, refuse_paging_without_gpu
from lrft.registry import BelowOne


@dataclass(frozen=True)
class AdEMAMix(Optimizer):
    """AdEMAMix (Pagliardini et al., arXiv 2409.03137) as bitsandbytes has it: AdamW with a second, slow mean."""

    name: ClassVar[str] = "ademamix"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True

    betas: Annotated[tuple[BelowOne, BelowOne, BelowOne], Field(strict=False)] = (0.9, 0.999, 0.9999)
    """Decay of the fast mean, of the mean square, and of the slow mean."""
    alpha: Annotated[float, Field(ge=0)] = 5.0
    """Weight of the slow mean; 0 is AdamW."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
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
        from bitsandbytes.optim import AdEMAMix as Made
        from bitsandbytes.optim import AdEMAMix8bit

        made: Any = AdEMAMix8bit if self.bits == 8 else Made
        return made(groups, betas=self.betas, alpha=self.alpha, eps=self.eps, is_paged=self.paged)

    def state_bytes(self, parameter: Tensor) -> int:
        return 3 * parameter.numel() * self.bits // 8

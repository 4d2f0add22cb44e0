"""AdamW of bitsandbytes: its state in 8 bits, or paged between a GPU's memory and the machine's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu, refuse_paging_without_gpu
from lrft.registry import Betas


@dataclass(frozen=True)
class AdamW8bit(Optimizer):
    """AdamW with its state in 8 bits (Dettmers et al., arXiv 2110.02861) as bitsandbytes has it.

    A tensor of fewer than 4096 numbers keeps 32 bits.
    """

    name: ClassVar[str] = "adamw-8bit"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True

    betas: Betas = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from bitsandbytes.optim import AdamW8bit as Made

        return Made(groups, betas=self.betas, eps=self.eps)

    def state_bytes(self, parameter: Tensor) -> int:
        return 2 * parameter.numel()


@dataclass(frozen=True)
class PagedAdamW(Optimizer):
    """AdamW whose state moves to the machine's memory while a GPU's is full (Dettmers et al., arXiv 2305.14314)."""

    name: ClassVar[str] = "paged-adamw"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True

    betas: Betas = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    bits: Literal[8, 32] = 32
    """Bits of a number of the state."""

    def refuse(self, gpu: bool) -> None:
        """Raises UsageError without a GPU."""
        refuse_paging_without_gpu(gpu, self.name, "Use adamw-8bit or adamw.")

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        self.refuse(on_gpu(groups))
        from bitsandbytes.optim import PagedAdamW8bit, PagedAdamW32bit

        made = {8: PagedAdamW8bit, 32: PagedAdamW32bit}[self.bits]
        return made(groups, betas=self.betas, eps=self.eps)

    def state_bytes(self, parameter: Tensor) -> int:
        return 2 * parameter.numel() * self.bits // 8

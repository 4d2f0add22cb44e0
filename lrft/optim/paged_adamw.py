"""AdamW of bitsandbytes with its state paged between a GPU's memory and the machine's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu, refuse_paging_without_gpu


@dataclass(frozen=True)
class PagedAdamW(Optimizer):
    """AdamW whose state moves to the machine's memory while a GPU's is full (Dettmers et al., arXiv 2305.14314)."""

    name: ClassVar[str] = "paged-adamw"
    needs: ClassVar[str] = "bitsandbytes"
    blockwise: ClassVar[bool] = True

    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
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

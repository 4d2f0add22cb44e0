"""AdamW of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu
from lrft.registry import Betas


@dataclass(frozen=True)
class AdamW(Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) as torch has it: fused on a GPU."""

    name: ClassVar[str] = "adamw"

    betas: Betas = (0.9, 0.999)
    """Decay of the two running means."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    implementation: Literal["auto", "fused", "foreach", "loop"] = "auto"
    """How torch computes it: in one kernel, in operations on all tensors at once, or tensor by tensor. auto: fused on a
    GPU, loop on a CPU."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = self.implementation
        if kind == "auto":
            kind = "fused" if on_gpu(groups) else "loop"
        made = torch.optim.AdamW(
            groups, betas=self.betas, eps=self.eps, fused=kind == "fused", foreach=kind == "foreach"
        )
        # Under fp16 a fused step would look for overflow by itself, and nobody would learn of a step that it skips.
        made._step_supports_amp_scaling = False
        return made

"""Adafactor of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer


@dataclass(frozen=True)
class Adafactor(Optimizer):
    """Adafactor (Shazeer and Stern, arXiv 1804.04235) as torch has it: a mean square for each row and column."""

    name: ClassVar[str] = "adafactor"
    rates: ClassVar[str] = "takes rates relative to each tensor's size, such as 0.01"

    beta2_decay: Annotated[float, Field(lt=0)] = -0.8
    """Power of the step by which the decay of the mean squares approaches 1."""
    floor: Annotated[float, Field(gt=0)] = 1e-3
    """The rate is relative to the root mean square of the tensor, and to this where that is smaller."""
    clipping: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of an update before the rate."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(
            groups, beta2_decay=self.beta2_decay, eps=(None, self.floor), d=self.clipping, foreach=False
        )

    def state_bytes(self, parameter: Tensor) -> int:
        kept = parameter.numel() // min(parameter.shape[-2:]) * 2 if parameter.ndim > 1 else parameter.numel()
        return kept * parameter.element_size()

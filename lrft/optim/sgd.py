"""Stochastic gradient descent of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.optim.base import Optimizer


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Stochastic gradient descent with momentum, as torch has it; weight decay is added to the gradient."""

    name: ClassVar[str] = "sgd"

    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of the last step's direction that is kept; 0: plain gradient descent, without any state."""
    nesterov: bool = False
    """Nesterov's momentum: the gradient is added once more. Without effect where momentum is 0."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, momentum=self.momentum, nesterov=self.nesterov and self.momentum > 0)

    def state_bytes(self, parameter: Tensor) -> int:
        return parameter.numel() * parameter.element_size() if self.momentum else 0

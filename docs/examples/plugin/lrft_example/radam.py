"""An optimiser: RAdam of torch. Liu et al., 2019, arXiv 1908.03265."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from lrft.optim.base import Optimizer


@dataclass(frozen=True)
class RAdam(Optimizer):
    """Adam with a variance that is rectified in the first steps, so that it needs no warm-up."""

    name: ClassVar[str] = "radam"

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, eps=self.eps, decoupled_weight_decay=True)

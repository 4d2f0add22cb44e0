"""Base class of optimisers. One file each in this folder, or an entry point of `lrft.optimizers`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch


class Optimizer:
    """Abstract. A subclass is a frozen dataclass: its name in `training.optimizer`, its options, and `make`."""

    name: ClassVar[str]

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over `groups` of named parameters, each with "lr" and "weight_decay". State is tensors only."""
        raise NotImplementedError("abstract")

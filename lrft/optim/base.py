"""Base class of optimisers. One file each in this folder, or an entry point of `lrft.optimizers`."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor


class Optimizer:
    """Abstract. A subclass is a frozen dataclass: its name in `training.optimizer`, its options, and `make`."""

    name: ClassVar[str]
    needs: ClassVar[str] = ""
    """the package of an index that it is made of, when lrft does not bring it; a run without it is refused"""
    blockwise: ClassVar[bool] = False
    """Whether state may be kept in 8 bits with a scale for each block of numbers. What edits single rows of an
    optimiser's state (`edits_moments` of a method) is refused beside it."""

    rates: ClassVar[str] = ""
    """how its learning rates are to those of adamw, for which methods declare their defaults; "" for alike"""

    def refuse(self, gpu: bool) -> None:
        """Raises UsageError where it cannot run. gpu: whether what is trained is on CUDA devices."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over `groups` of named parameters, each with "lr" and "weight_decay". State is tensors and
        numbers only."""
        raise NotImplementedError("abstract")

    def state_bytes(self, parameter: Tensor) -> int:
        """What it keeps for a trained tensor: by default two numbers for each one, as Adam does."""
        return 2 * parameter.numel() * parameter.element_size()

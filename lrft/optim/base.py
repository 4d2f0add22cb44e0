"""Base class of optimisers. One file each in this folder, or an entry point of `lrft.optimizers`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
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

    averages: ClassVar[bool] = False
    """Whether what is evaluated and saved is another point than the one that is trained (`averaged`). Methods that
    write to trained tensors between steps would write to one of the two, and are refused beside it."""
    schedules: ClassVar[tuple[str, ...]] = ()
    """names of training.lr_scheduler beside which it works; empty for all"""

    rates: ClassVar[str] = ""
    """how its learning rates are to those of adamw, for which methods declare their defaults; "" for alike"""

    def refuse(self, gpu: bool) -> None:
        """Raises UsageError where it cannot run. gpu: whether what is trained is on CUDA devices."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """The optimiser over `groups` of named parameters, each with "lr" and "weight_decay". State is tensors and
        numbers only."""
        raise NotImplementedError("abstract")

    def averaged(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[None]:
        """Inside, the tensors of `optimizer`, which `make` has made, are at the point that is evaluated and saved;
        behind it they are in the bits that they had. A state that is asked for inside holds what is needed to go on
        training: tensors and state that are loaded inside are at the point of training behind it."""
        return nullcontext()

    def state_bytes(self, parameter: Tensor) -> int:
        """What it keeps for a trained tensor: by default two numbers for each one, as Adam does."""
        return 2 * parameter.numel() * parameter.element_size()

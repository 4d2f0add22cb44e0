"""The engine of a run: model, objective, strategy and optimiser; forward passes, all-reduce and steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import ENTRIES
from lrft.data.passes import PassSize
from lrft.distributed.strategy import Strategy
from lrft.distributed.watchdog import Watchdog
from lrft.model.activation_offload import offloading
from lrft.objectives.base import LossModule, Objective
from lrft.objectives.packing import Layout
from lrft.objectives.to_device import to_device

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Engine:
    """losses is the language model inside the objective's module; `model` the same inside a distributed wrapper."""

    accelerator: Accelerator
    objective: Objective
    losses: LossModule
    strategy: Strategy
    """parallelism strategy; holds the optimiser"""
    layout: Layout
    pad_id: int
    micro: int
    """micro batch size: the recipe's, or the largest that fits"""
    tokens: int | None = None
    """of a pass in training, in the place of so many rows: the recipe's, or the most that fit"""
    offload: bool = False
    """whether activations are offloaded to CPU memory"""
    averaged: Callable[[], AbstractContextManager[None]] = nullcontext
    """context in which trained tensors are at the point that is evaluated and saved (`Optimizer.averaged`)"""
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, 1, None))

    @property
    def model(self) -> nn.Module:
        """`losses`, or a distributed wrapper around them."""
        return self.strategy.model

    @property
    def optimizer(self) -> Any:
        """As Accelerate has prepared it."""
        return self.strategy.optimizer

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        return self.accelerator.num_processes

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        with self.watchdog.during("all-reduce over processes"):
            total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    @property
    def size(self) -> PassSize:
        """Of a training pass."""
        return PassSize(self.micro, self.tokens, padded=self.layout.form == "padded")

    def passes(self, rows: Rows, ids: np.ndarray) -> list[list[int]]:
        """The rows of each training pass of this process in a step over the rows `ids`."""
        return self.size.passes(rows, ids, rank=self.rank, world=self.world)

    def batch(self, rows: Rows, ids: Sequence[int]) -> dict[str, Tensor]:
        """The batch of `ids` in `rows`, on this process's device."""
        asked = list(ids) * self.losses.copies()
        made = self.objective.collate(rows, asked, pad_id=self.pad_id, form=self.layout.form)
        if self.losses.sources:
            made[ENTRIES] = torch.from_numpy(rows.entries[asked].astype(np.int64))
        return to_device(made, self.device)

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """The summed loss of a micro-batch, for a backward pass."""
        with offloading(self.device) if self.offload else nullcontext():
            loss: Tensor = self.model(batch)
        return loss

"""Parallelism strategies: placement of parameters, gradient reduction and optimiser step.

The loop calls the same names whatever the strategy; `training.start_engine.wrap_for_strategy` chooses one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.attached import Attached
from lrft.distributed import fsdp
from lrft.optim.named_state import load_state_tensors, state_tensors


class Strategy:
    """Each process holds everything: DistributedDataParallel takes the mean of gradients in a step's last pass. One
    process alone needs no other either.

    model      answers a batch with its loss: a `TokenLoss`, or a wrapper around it
    optimizer  as Accelerate has prepared it
    together   the base is divided: all processes have to make every forward pass together
    """

    name = "ddp"
    together = False

    def __init__(self, accelerator: Any, model: nn.Module, optimizer: Any, attached: Attached) -> None:
        self.accelerator, self.model, self.optimizer, self.attached = accelerator, model, optimizer, attached

    def of_pass(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around one micro-batch's forward and backward pass. last: of its step."""
        around: AbstractContextManager[Any] = nullcontext() if last else self.accelerator.no_sync(self.model)
        return around

    def backward(self, loss: Tensor) -> None:
        """Gradients are means over processes."""
        self.accelerator.backward(loss)

    def after_passes(self) -> None:
        """What is left to exchange when all passes of a step are made."""

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Name and gradient of every trained tensor with one, between `after_passes` and `step`. Each process asks."""
        return ((name, p.grad) for name, p in self.attached.trained().items() if p.grad is not None)

    def step(self, limit: float | None, clipped: Callable[[Tensor | float], None]) -> bool:
        """Clip the gradient to a norm of `limit` and take the optimiser's step. Returns whether the step was made: fp16
        skips one whose gradients overflow.

        clipped: told the norm before clipping once gradients are clipped, as a number or where it was computed; a step
        that it refuses is not taken.
        """
        trained = list(self.attached.trained().values())
        clipped(self.accelerator.clip_grad_norm_(trained, math.inf if limit is None else limit))
        self.optimizer.step()
        # An optimiser's own kernel may write where torch does not see it. Who keeps what was made of a tensor has to
        # learn that it is stale.
        torch.autograd.graph.increment_version(trained)
        return not self.accelerator.optimizer_step_was_skipped

    def clear(self) -> None:
        """No gradients are left over for the next step."""
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimiser's state as "tensor/entry" -> values, for the first process. Each process asks."""
        return state_tensors(self.optimizer.optimizer)

    def load_state(
        self, tensors: Mapping[str, Tensor], expected: Collection[str], answer: Callable[[], Tensor]
    ) -> None:
        """Put `state` back, after the adapters' tensors. Raises CheckFailed unless just the tensors `expected` have
        state. answer: makes the loss of some row."""
        load_state_tensors(self.optimizer.optimizer, tensors, expected)


class Divided(Strategy):
    """fsdp: each process holds a part of the base's blocks (`lrft/distributed/fsdp.py`), and all adapters."""

    name = "fsdp"
    together = True

    def of_pass(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext()

    def after_passes(self) -> None:
        fsdp.mean_gradients(self.attached.trained().values(), self.accelerator)

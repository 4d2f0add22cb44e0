"""Gradients of several passes, for a part that composes the step's gradient from more than one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

Gradients = dict[nn.Parameter, Tensor]
"""By trained tensor: means over the global batch, of all processes, without a loss scale."""


@dataclass(frozen=True)
class FurtherPasses:
    """Passes that a part makes in each step beside the step's own: for the forecast of time."""

    own: int = 0
    """forward and backward over the step's rows"""
    auxiliary: int = 0
    """forward and backward over its auxiliary rows"""
    base: int = 0
    """forward alone over the step's rows, by the untouched base"""


class StepPasses(Protocol):
    """What `Part.compose_gradient` may ask for (`lrft.training.forward_backward`). All processes have to ask alike."""

    def own(self) -> Gradients:
        """The gradient of the step's own loss, penalties included, at the trained tensors as they are now: of the same
        rows in the same micro-batches, with the same dropout masks."""

    def auxiliary(self) -> Gradients:
        """The gradient of the objective's loss alone on this step's auxiliary rows (`Part.auxiliary_rows`)."""

    def stepped(self, gradients: Gradients) -> AbstractContextManager[None]:
        """Inside, these tensors are as the optimiser's step with these gradients would leave them. Afterwards they,
        and the optimiser, are as before, to the bit."""


class TakesGradients(Protocol):
    """An optimiser that takes each gradient as it arrives (`Part.gradients_taken`, `lrft.distributed.arriving`)."""

    def take(self, p: Tensor, gradient: Tensor) -> bool:
        """Take in what a backward pass has made for `p`; True when it is not needed any more."""

    def norms(self) -> dict[Tensor, Tensor]:
        """The norms () of the gradients of the step that is being made, by trained tensor."""


def combined(*terms: tuple[float, Mapping[nn.Parameter, Tensor]]) -> Gradients:
    """The sum of factor times gradient. One that a pass has not reached counts as zero."""
    total: Gradients = {}
    for factor, gradients in terms:
        for p, gradient in gradients.items():
            total[p] = total[p] + factor * gradient if p in total else factor * gradient
    return total


def norm(gradients: Mapping[nn.Parameter, Tensor]) -> float:
    """The length of all of them together."""
    return float(torch.nn.utils.get_total_norm(list(gradients.values())))


@contextmanager
def displaced(by: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
    """Inside, each tensor is p + by[p]. Afterwards it is as before to the bit, which adding back would not give."""
    before = {p: p.detach().clone() for p in by}
    try:
        with torch.no_grad():
            for p, change in by.items():
                p.add_(change)
        yield
    finally:
        with torch.no_grad():
            for p, value in before.items():
                p.copy_(value)

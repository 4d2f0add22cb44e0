"""Base class of training objectives. One file each in this folder, or an entry point of `lrft.objectives`.

An objective says how rows become a batch, how much a row counts (the divisor of the step), how much a batch counts,
and which module answers a batch with its summed loss. The loop, evaluation, calibration and checks know no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import Form

Context = Callable[[], AbstractContextManager[Any]]


class LossModule(nn.Module):
    """Abstract: a model that answers a batch with its loss, summed over what the objective counts, float32, shape ().

    A module, so that a distributed wrapper around it sees the whole pass. A sum, never a mean: the divisor is the count
    of the whole optimiser step.

    model      the language model
    extra      in training, a mean over the batch's counted items that is added to their loss, or None
    as_base    the context in which `model` is the untouched base: a reference model free of charge
    copies     in how many copies rows are to come (`lrft.adapters.ensemble`)
    computing  the context in which it answers: of a precision
    """

    adds_extra: ClassVar[bool] = False
    """Whether `sum_of` adds `extra`. Methods that need it are refused beside an objective that does not."""

    def __init__(self, model: nn.Module, *, as_base: Context | None = None) -> None:
        super().__init__()
        self.model = model
        self.as_base = as_base
        self.extra: Callable[[Any], Tensor | None] | None = None
        self.copies: Callable[[], int] = lambda: 1
        self.last_extra: Tensor | None = None
        self.computing: Context = nullcontext

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        with self.computing():
            return self.sum_of(batch)

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError("abstract")

    def take_extra(self) -> Tensor | float:
        """What the extra term has added to the last answer."""
        taken, self.last_extra = self.last_extra, None
        return 0.0 if taken is None else taken


class Objective:
    """Abstract. A subclass is a frozen dataclass: its name in `training.objective`, its options, and these four."""

    name: ClassVar[str]

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        """How much the rows `ids` count: the divisor of a step that has them."""
        raise NotImplementedError("abstract")

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        """The same of a collated batch."""
        raise NotImplementedError("abstract")

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """The batch of the rows `ids`, on the CPU. form: padded, or packed as the model has been found to take it."""
        raise NotImplementedError("abstract")

    def module(self, model: nn.Module, *, direct: bool = False) -> LossModule:
        """What answers such a batch with its summed loss.

        direct: logits are the output embedding's product with the decoder's last hidden states, so that they can be
        made in chunks (`lrft.objectives.packing` finds out).
        """
        raise NotImplementedError("abstract")

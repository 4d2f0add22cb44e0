"""An objective: the focal loss. Lin et al., 2017, arXiv 1708.02002, equation 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lrft.data.collate import IGNORE_INDEX
from lrft.objectives.base import LossModule
from lrft.objectives.cross_entropy import logits_before_labels, wide
from lrft.objectives.sft import Sft


@dataclass(frozen=True)
class Focal(Sft):
    """The next-token loss, weighted down where the model is already sure. Rows, batches and counts are those of sft."""

    name: ClassVar[str] = "focal"
    perplexity: ClassVar[bool] = False
    weighs_rows: ClassVar[bool] = False

    gamma: Annotated[float, Field(ge=0)] = 2.0
    """Power of the missing probability; 0 is sft."""

    def module(self, model: nn.Module, *, direct: bool = False) -> LossModule:
        return FocalLoss(model, self.gamma)


class FocalLoss(LossModule):
    """Sum over trained tokens of -(1 - p)^gamma log p, p the probability of the right token."""

    def __init__(self, model: nn.Module, gamma: float) -> None:
        super().__init__(model)
        self.gamma = gamma

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits, labels = logits_before_labels(self.model, inputs, batch["labels"])
        trained = labels != IGNORE_INDEX
        losses = cross_entropy(wide(logits[trained]), labels[trained], reduction="none")
        self.note("accuracy", (logits[trained].argmax(-1) == labels[trained]).double())
        return ((1 - (-losses).exp()) ** self.gamma * losses).sum()

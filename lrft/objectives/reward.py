"""Reward models: a number for an answer, learnt from pairs. Ouyang et al., 2022, arXiv 2203.02155, equation 1.

The margin is that of Touvron et al., 2023, arXiv 2307.09288, equation 2; the term that keeps rewards around zero is
that of Eisenstein et al., 2023, arXiv 2312.09244, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from lrft.data import Rows
from lrft.data.collate import Form, collate
from lrft.model.head import Head
from lrft.objectives.base import Asked, LossModule, Objective
from lrft.objectives.cross_entropy import wide
from lrft.objectives.pairs import preferred


@dataclass(frozen=True)
class Reward(Objective):
    """A reward model: one number for a conversation, higher for the chosen answer of a pair than for the rejected one.

    A pair's loss is -log sigmoid(r_chosen - r_rejected - margin); the margin is the row's column `margin`, 0 without
    one. The head is trained in full beside the adapters; AutoModelForSequenceClassification loads the result.
    """

    name: ClassVar[str] = "reward"
    rows: ClassVar[str] = "preference"
    ranked_by: ClassVar[dict[str, str]] = {"reward accuracy": "higher"}
    head: ClassVar[str] = "sequence"
    reads_margins: ClassVar[bool] = True
    unit: ClassVar[str] = "pair"

    center: Annotated[float, Field(ge=0)] = 0.0
    """Weight of (r_chosen + r_rejected)^2, which keeps rewards around zero; 0.01 is usual."""

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(1 for _ in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["margin"])

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """input_ids and attention_mask int64 (2 B, T), chosen and rejected answers in turn; margin float32 (B,). Raises
        ValueError for another form than padded."""
        if form != "padded":
            raise ValueError("a head answers padded batches")
        batch = collate(rows, ids, pad_id=pad_id, form=form)
        del batch["labels"]
        given = [rows.numbers("margin", i) for i in ids] if "margin" in rows.names else [np.empty(0)] * len(ids)
        return batch | {"margin": torch.tensor([float(each[0]) if len(each) else 0.0 for each in given])}

    def head_for(self, asked: Asked) -> Head:
        return Head(self.head, (), "regression", asked.pad_id, asked.seed)

    def module(self, model: nn.Module, *, direct: bool = False) -> RewardLoss:
        return RewardLoss(model, self.center)


class RewardLoss(LossModule):
    """Sum of the losses of pairs."""

    tells_sources: ClassVar[bool] = True

    def __init__(self, model: nn.Module, center: float) -> None:
        super().__init__(model)
        self.center = center

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        rewards = wide(self.model(**inputs).logits)[:, 0]
        chosen, rejected = rewards[::2], rewards[1::2]
        self.note("reward accuracy", preferred(chosen, rejected))
        self.note("reward margin", chosen - rejected)
        self.note("chosen reward", chosen)
        self.note("rejected reward", rejected)
        losses = -logsigmoid(chosen - rejected - batch["margin"].to(chosen.dtype))
        losses = losses + self.center * (chosen + rejected).square()
        self.note_rows(losses, batch)
        return losses.sum()

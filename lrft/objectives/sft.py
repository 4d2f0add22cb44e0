"""Supervised fine-tuning: the token loss of training, evaluation and checks.

Logits are made only where a token is trained, some at a time: the tensor (tokens, vocabulary) is never whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import WEIGHTS, Form, collate
from lrft.model.layers import head_of
from lrft.objectives.base import Context, LossModule, Objective
from lrft.objectives.cross_entropy import (
    IGNORE_INDEX,
    chunked_cross_entropy,
    hidden_before_labels,
    logits_before_labels,
    mixed_cross_entropy,
    summed_cross_entropy,
    weight_of,
    wide,
)


class Outputs:
    """What a micro-batch was answered with, for terms of the loss that look at more than the token loss.

    targets   (n,) the trained tokens
    """

    def __init__(self, targets: Tensor, logits: Callable[[], Tensor], base_logits: Callable[[], Tensor]) -> None:
        self.targets = targets
        self._logits, self._base_logits = logits, base_logits
        self.made: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        """(n, vocabulary) float32: those that predict the targets. Made when they are first asked for."""
        if self.made is None:
            self.made = self._logits()
        return self.made

    def base_logits(self) -> Tensor:
        """The same of the untouched base, without gradient: one more forward pass."""
        return self._base_logits()


@dataclass(frozen=True)
class Sft(Objective):
    """Supervised fine-tuning: the next-token loss of the answers' tokens, each counted with the weight of its row."""

    name: ClassVar[str] = "sft"
    perplexity: ClassVar[bool] = True
    weighs_rows: ClassVar[bool] = True

    def weight(self, rows: Rows, ids: Iterable[int]) -> float:
        return sum(rows.weight(int(i)) * int(rows.trained(int(i)).sum()) for i in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> float:
        return weight_of(batch)

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        return collate(rows, ids, pad_id=pad_id, form=form)

    def module(self, model: nn.Module, *, direct: bool = False) -> LossModule:
        return TokenLoss(model, direct=direct)


class TokenLoss(LossModule):
    """Sum of the cross-entropy over the trained tokens of a batch.

    batch["labels"] (B, T) holds token j at j where it is trained and -100 elsewhere, not shifted: the logits at j - 1
    predict it. `direct` as in `Objective.module`; a model that does more than a product (scales or caps its logits)
    makes all logits of the trained positions at once. With copies the loss is their mean in training, and that of the
    mean of their probabilities in evaluation.
    """

    adds_extra: ClassVar[bool] = True
    mixes_copies: ClassVar[bool] = True

    def __init__(self, model: nn.Module, *, direct: bool = False, as_base: Context | None = None) -> None:
        super().__init__(model, as_base=as_base)
        self.direct = direct

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        targets, logits, loss = self.answer(batch)
        weights, copies = self.weights(batch), self.copies()
        if not self.training:
            return loss() if copies == 1 else mixed_cross_entropy(logits(), targets, copies, weights)
        if self.extra is None or not len(targets):
            return loss() / copies
        outputs = Outputs(targets, logits, lambda: self.base_answer(batch))
        term = self.extra(outputs)
        # Who has asked for the logits has them whole: then they serve the token loss too.
        total = loss() if outputs.made is None else summed_cross_entropy(outputs.made, targets, weights)
        if term is None:
            return total / copies
        added = (len(targets) if weights is None else weights.sum()) * term / copies
        self.last_extra = added.detach()
        return total / copies + added

    def answer(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]:
        """The n trained tokens, and what makes the logits (n, vocabulary) before them and the sum of their losses."""
        labels, weights = batch["labels"], self.weights(batch)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", WEIGHTS)}
        if self.direct:
            head = head_of(self.model)
            hidden, targets = hidden_before_labels(self.model, inputs, labels)
            return targets, lambda: wide(head(hidden)), lambda: chunked_cross_entropy(head, hidden, targets, weights)
        logits, after = logits_before_labels(self.model, inputs, labels)
        chosen = after != IGNORE_INDEX
        if weights is None:
            return after[chosen], lambda: wide(logits[chosen]), lambda: summed_cross_entropy(logits, after)
        made = logits[chosen]
        return after[chosen], lambda: wide(made), lambda: summed_cross_entropy(made, after[chosen], weights)

    @staticmethod
    def weights(batch: Mapping[str, Tensor]) -> Tensor | None:
        """The weights (n,) of the trained tokens; None where all are 1."""
        trained = batch["labels"][:, 1:] != IGNORE_INDEX
        return batch[WEIGHTS][:, 1:][trained] if WEIGHTS in batch else None

    @torch.no_grad()
    def base_answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (n, vocabulary) of the untouched base. Raises ValueError where nobody has said how."""
        if self.as_base is None:
            raise ValueError("base logits require as_base")
        with self.as_base():
            return self.answer(batch)[1]()

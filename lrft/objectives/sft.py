"""The token loss: one function for training, evaluation and checks, so that they cannot differ.

Logits are made only where a token is trained, some at a time: the tensor (tokens, vocabulary) is never whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.layers import head_of
from lrft.objectives.cross_entropy import (
    IGNORE_INDEX,
    chunked_cross_entropy,
    hidden_before_labels,
    logits_before_labels,
    mixed_cross_entropy,
    summed_cross_entropy,
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


class TokenLoss(nn.Module):
    """A causal language model that answers a batch with its loss.

    A module, so that a distributed wrapper around it sees the whole pass. `direct` says that logits are the output
    embedding's product with the decoder's last hidden states; `layout.find_layout` finds out. A model that does more
    (scales or caps its logits) makes all logits of the trained positions at once.

    extra    in training, a mean over the micro-batch's trained tokens that is added to theirs, or None
    as_base  the context in which `model` is the untouched base
    copies   in how many copies rows are to come: the loss is then the mean over them in training, and that of the mean
             of their probabilities in evaluation
    computing  the context in which it answers: of a precision
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        direct: bool = False,
        as_base: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.direct = direct
        self.as_base = as_base
        self.extra: Callable[[Outputs], Tensor | None] | None = None
        self.copies: Callable[[], int] = lambda: 1
        self.last_extra: Tensor | None = None
        self.computing: Callable[[], AbstractContextManager[Any]] = nullcontext

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Sum of the cross-entropy over the trained tokens of `batch`, float32, shape ().

        batch["labels"] (B, T) holds token j at j where it is trained and -100 elsewhere, not shifted: the logits at
        j - 1 predict it. A sum, never a mean: who divides must know the tokens of the whole optimiser step.
        """
        with self.computing():
            return self.sum_of(batch)

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        targets, logits, loss = self.answer(batch)
        copies = self.copies()
        if not self.training:
            return loss() if copies == 1 else mixed_cross_entropy(logits(), targets, copies)
        if self.extra is None or not len(targets):
            return loss() / copies
        outputs = Outputs(targets, logits, lambda: self.base_answer(batch))
        term = self.extra(outputs)
        # Who has asked for the logits has them whole: then they serve the token loss too.
        total = loss() if outputs.made is None else summed_cross_entropy(outputs.made, targets)
        if term is None:
            return total / copies
        added = len(targets) * term / copies
        self.last_extra = added.detach()
        return total / copies + added

    def answer(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]:
        """The n trained tokens, and what makes the logits (n, vocabulary) before them and the sum of their losses."""
        labels = batch["labels"]
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        if self.direct:
            head = head_of(self.model)
            hidden, targets = hidden_before_labels(self.model, inputs, labels)
            return targets, lambda: wide(head(hidden)), lambda: chunked_cross_entropy(head, hidden, targets)
        logits, after = logits_before_labels(self.model, inputs, labels)
        chosen = after != IGNORE_INDEX
        return after[chosen], lambda: wide(logits[chosen]), lambda: summed_cross_entropy(logits, after)

    @torch.no_grad()
    def base_answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (n, vocabulary) of the untouched base. Raises ValueError where nobody has said how."""
        if self.as_base is None:
            raise ValueError("a loss that compares with the base needs as_base")
        with self.as_base():
            return self.answer(batch)[1]()

    def take_extra(self) -> Tensor | float:
        """What the extra term has added to the last answer."""
        taken, self.last_extra = self.last_extra, None
        return 0.0 if taken is None else taken

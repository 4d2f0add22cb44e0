"""Supervised fine-tuning: the token loss of training, evaluation and checks.

Logits are made only where a token is trained, some at a time: the tensor (tokens, vocabulary) is never whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from lrft.data import Rows
from lrft.data.collate import ENTRIES, WEIGHTS, Form, collate
from lrft.errors import UsageError
from lrft.model.layers import head_of
from lrft.objectives.base import Context, LossModule, Objective
from lrft.objectives.cross_entropy import (
    IGNORE_INDEX,
    PLAIN,
    Terms,
    chunked_cross_entropy,
    hidden_before_labels,
    logits_before_labels,
    mixed,
    mixed_cross_entropy,
    summed_cross_entropy,
    trained_places,
    weight_of,
    wide,
)
from lrft.objectives.router import balance_loss, own_coefficient, router_logits


class Outputs:
    """What a micro-batch was answered with, for terms of the loss that look at more than the token loss.

    targets   (n,) the trained tokens
    of_texts  whether a head answers whole texts: targets (n, m) are then their labels, logits (n, labels)
    places    (B, T) bool: the tokens whose last hidden states the answer is made of; of texts all that are no padding
    """

    def __init__(
        self,
        targets: Tensor,
        logits: Callable[[], Tensor],
        base_logits: Callable[[], Tensor],
        *,
        of_texts: bool = False,
        places: Tensor | None = None,
        again: Callable[[], object] | None = None,
    ) -> None:
        self.targets, self.of_texts, self._places = targets, of_texts, places
        self._logits, self._base_logits, self._again = logits, base_logits, again
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

    @property
    def places(self) -> Tensor:
        if self._places is None:
            raise ValueError("places are not known here")
        return self._places

    def pass_again(self) -> None:
        """One more forward pass over the same micro-batch, with gradient, for who looks into the model."""
        if self._again is None:
            raise ValueError("no further pass is possible here")
        self._again()


@dataclass(frozen=True)
class Sft(Objective):
    """Supervised fine-tuning: the next-token loss of the answers' tokens, each counted with the weight of its row."""

    name: ClassVar[str] = "sft"
    perplexity: ClassVar[bool] = True
    weighs_rows: ClassVar[bool] = True

    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target that is spread over the vocabulary, in training; the validation loss is without."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared logarithm of the softmax's denominator, added to the loss in training; 1e-4 is usual."""
    router_aux_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that balances a mixture of experts, over each micro-batch of training; 0: none. Routers are
    frozen: it can only move what they are given."""

    def weight(self, rows: Rows, ids: Iterable[int]) -> float:
        return sum(rows.weight(int(i)) * int(rows.trained(int(i)).sum()) for i in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> float:
        return weight_of(batch)

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        return collate(rows, ids, pad_id=pad_id, form=form)

    def module(self, model: nn.Module, *, direct: bool = False) -> LossModule:
        """Raises UsageError for a router's loss of a model that declares none."""
        router, own = self.router_aux_loss_coef, own_coefficient(model)
        if router and own is None:
            raise UsageError(
                f"training.objective: router_aux_loss_coef: {type(model).__name__} has no such loss", "Leave it out."
            )
        terms = Terms(self.label_smoothing, self.z_loss)
        return TokenLoss(model, direct=direct, terms=terms, router=router)


ACCURACY = "token_accuracy"
"""the share of trained tokens that are the likeliest of all"""


class TokenLoss(LossModule):
    """Sum of the cross-entropy over the trained tokens of a batch.

    batch["labels"] (B, T) holds token j at j where it is trained and -100 elsewhere, not shifted: the logits at j - 1
    predict it. `direct` as in `Objective.module`; a model that does more than a product (scales or caps its logits)
    makes all logits of the trained positions at once. With copies the loss is their mean in training, and that of the
    mean of their probabilities in evaluation.
    """

    offers: ClassVar[tuple[str, ...]] = ("token_accuracy",)
    adds_extra: ClassVar[bool] = True
    mixes_copies: ClassVar[bool] = True
    tells_sources: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        *,
        direct: bool = False,
        as_base: Context | None = None,
        terms: Terms = PLAIN,
        router: float = 0.0,
    ) -> None:
        super().__init__(model, as_base=as_base)
        self.direct, self.terms, self.router = direct, terms, router
        self.right: Tensor = torch.zeros((), dtype=torch.float64)
        self.of_tokens: list[Tensor] = []

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        self.of_tokens = []
        total = self.balanced_sum(batch)
        if self.by_source:
            labels = batch["labels"]
            self.note_tokens(joined(self.of_tokens, labels), batch, trained(labels), self.weights(batch))
        return total

    def balanced_sum(self, batch: Mapping[str, Tensor]) -> Tensor:
        """`token_sum`, and the loss that balances a mixture of experts."""
        if not self.training or not self.router:
            return self.token_sum(batch)
        with router_logits(self.model) as found:
            total = self.token_sum({**batch, "output_router_logits": True})
        weight = self.router * weight_of(batch) / self.copies()
        return total + weight * balance_loss(self.model, found[0], batch)

    def checks(self) -> dict[str, str]:
        own = own_coefficient(self.model)
        if own is None:
            return {}
        text = (
            f"the loss that balances its routers has the weight {self.router:g}"
            if self.router
            else (
                "the loss that balances its routers is not added (its own weight: training.objective: "
                f"{{sft: {{router_aux_loss_coef: {own:g}}}}})"
            )
        )
        return {"mixture of experts": text}

    def token_sum(self, batch: Mapping[str, Any]) -> Tensor:
        """The sum of the token losses, and of what a part adds to them."""
        targets, logits, loss = self.answer(batch)
        weights, copies, terms = self.weights(batch), self.copies(), self.terms
        if not self.training:
            return self.evaluated(targets, logits, loss, copies, weights)
        if self.extra is None or not len(targets):
            return loss() / copies
        outputs = Outputs(
            targets,
            logits,
            lambda: self.base_answer(batch),
            places=pad(batch["labels"][:, 1:] != IGNORE_INDEX, (0, 1)),
            again=lambda: self.answer(batch),
        )
        term = self.extra(outputs)
        # Who has asked for the logits has them whole: then they serve the token loss too.
        total = (
            loss() if outputs.made is None else summed_cross_entropy(outputs.made, targets, weights, terms, self.each)
        )
        if term is None:
            return total / copies
        added = (len(targets) if weights is None else weights.sum()) * term / copies
        self.last_extra = added.detach()
        return total / copies + added

    def evaluated(
        self,
        targets: Tensor,
        logits: Callable[[], Tensor],
        loss: Callable[[], Tensor],
        copies: int,
        weights: Tensor | None,
    ) -> Tensor:
        """The loss of evaluation, and the figures that are wanted of it."""
        if copies == 1:
            value = loss()
        else:
            whole = logits()
            value = mixed_cross_entropy(whole, targets, copies, weights)
            self.compare(mixed(whole, copies), targets[: len(targets) // copies])
        if ACCURACY in self.wanted:
            self.note_sum(ACCURACY, torch.stack([self.right, self.right.new_tensor(len(targets) // copies)]))
        return value

    def compare(self, logits: Tensor, targets: Tensor) -> None:
        """Counts the tokens that are the likeliest: logits (n, vocabulary), targets (n)."""
        if ACCURACY in self.wanted:
            self.right = self.right + (logits.argmax(-1) == targets).sum()

    @property
    def each(self) -> Callable[[Tensor], None] | None:
        """What is told of the losses of tokens, where they are told apart by their sources."""
        return self.of_tokens.append if self.by_source else None

    def answer(self, batch: Mapping[str, Any]) -> tuple[Tensor, Callable[[], Tensor], Callable[[], Tensor]]:
        """The n trained tokens, and what makes the logits (n, vocabulary) before them and the sum of their losses."""
        labels, weights, terms = batch["labels"], self.weights(batch), self.terms if self.training else PLAIN
        look = None if self.training or self.copies() > 1 else self.compare
        self.right = torch.zeros((), dtype=torch.float64, device=labels.device)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", WEIGHTS, ENTRIES)}
        if self.direct:
            head = head_of(self.model)
            hidden, targets = hidden_before_labels(self.model, inputs, labels)
            return (
                targets,
                lambda: wide(head(hidden)),
                lambda: chunked_cross_entropy(head, hidden, targets, weights, terms, look, self.each),
            )
        logits, after = logits_before_labels(self.model, inputs, labels)
        chosen = after != IGNORE_INDEX

        def loss() -> Tensor:
            if look is not None and ACCURACY in self.wanted:
                look(logits[chosen], after[chosen])
            if weights is None and self.each is None:
                return summed_cross_entropy(logits, after, None, terms)
            return summed_cross_entropy(logits[chosen], after[chosen], weights, terms, self.each)

        return after[chosen], lambda: wide(logits[chosen]), loss

    @staticmethod
    def weights(batch: Mapping[str, Tensor]) -> Tensor | None:
        """The weights (n,) of the trained tokens; None where all are 1."""
        if WEIGHTS not in batch:
            return None
        row, column = trained_places(batch["labels"])
        return batch[WEIGHTS][row, column + 1]

    @torch.no_grad()
    def base_answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (n, vocabulary) of the untouched base. Raises ValueError where nobody has said how."""
        if self.as_base is None:
            raise ValueError("base logits require as_base")
        with self.as_base():
            return self.answer(batch)[1]()


def trained(labels: Tensor) -> Tensor:
    """bool (B, T): the tokens that are predicted. labels as of `TokenLoss`."""
    return (labels != IGNORE_INDEX) & (torch.arange(labels.shape[1], device=labels.device) > 0)


def joined(parts: Sequence[Tensor], labels: Tensor) -> Tensor:
    """The losses of tokens end to end, of a batch with these labels; there may be none."""
    return torch.cat(list(parts)) if parts else torch.zeros(0, device=labels.device)

"""A label for each word of a text: named entities, parts of speech. By a head that is trained in full.

The model is stock transformers' own for the task, so what is trained is what `AutoModelForTokenClassification` and its
pipelines compute. A decoder sees of a text what stands before a word, and the word.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lrft.data import Rows
from lrft.data.collate import IGNORE_INDEX, Form, collate
from lrft.model.head import Head
from lrft.objectives.base import Asked, LossModule, Objective
from lrft.objectives.class_weights import given_weights
from lrft.objectives.cross_entropy import wide
from lrft.objectives.entities import are_entities, counts_of, of_entities
from lrft.objectives.figures import of_confusion


@dataclass(frozen=True)
class TokenClassification(Objective):
    """A label for each word of a text, by a head trained in full beside the adapters."""

    name: ClassVar[str] = "token-classification"
    rows: ClassVar[str] = "tagged"
    head: ClassVar[str] = "token"
    defaults: ClassVar[dict[str, Any]] = {"data.too_long": "truncate"}
    unit: ClassVar[str] = "labelled token"

    tokens: Literal["first", "all"] = "first"
    """Which tokens of a word have its label. all: B- becomes I- behind the first one."""
    class_weights: Literal["none", "balanced"] | Annotated[tuple[float, ...], Field(strict=False)] = "none"
    """Factor on the loss of each label, in their order. balanced: by how rare it is among the words to train on."""

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(int(np.count_nonzero(self.places(rows, int(i)))) for i in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def places(self, rows: Rows, i: int) -> np.ndarray:
        """bool (n,): the tokens of row i that have a label."""
        word = rows.numbers("word", i)
        return (word >= 0) & (begins(word) if self.tokens == "first" else True)

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """input_ids, attention_mask and labels int64 (B, T), -100 where a token has none; first bool (B, T): the first
        tokens of words. Raises ValueError for another form than padded."""
        if form != "padded":
            raise ValueError("a head answers padded batches")
        batch = collate(rows, ids, pad_id=pad_id, form=form)
        labels, first = batch["labels"].fill_(IGNORE_INDEX), torch.zeros_like(batch["labels"], dtype=torch.bool)
        for k, i in enumerate(ids):
            word, own = rows.numbers("word", i), rows.numbers("label", i)
            places = np.flatnonzero(self.places(rows, i))
            labels[k, places] = torch.from_numpy(own[word[places].astype(int)].astype(np.int64))
            first[k, np.flatnonzero(begins(word))] = True
        return batch | {"labels": labels, "first": first}

    def head_for(self, asked: Asked) -> Head:
        names = tuple(asked.report.labels)
        return Head(self.head, names, pad_id=asked.pad_id, seed=asked.seed, weights=self.weights_of(names, asked.train))

    def weights_of(self, names: Sequence[str], train: Rows) -> tuple[float, ...]:
        """Factors of the labels, none for equal ones. balanced: words / (labels x words of the label). Raises
        ValueError."""
        if self.class_weights != "balanced":
            return given_weights(self.class_weights, names)
        found = np.concatenate([train.numbers("label", i).astype(int) for i in range(len(train))])
        words = np.bincount(found, minlength=len(names)).astype(float)
        return tuple(float(len(found) / ((words > 0).sum() * n)) if n else 1.0 for n in words)

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = of_confusion(sums["confusion"])
        if "entities" not in sums:
            return found
        return of_entities(sums["entities"]) | {"accuracy": found["accuracy"]}

    def module(self, model: nn.Module, *, direct: bool = False) -> TokenClassLoss:
        return TokenClassLoss(model)


def begins(word: np.ndarray) -> np.ndarray:
    """bool (n,): the first tokens of words. word (n,): the number of the word that each token is of, -1 for none."""
    return (word >= 0) & (np.diff(word, prepend=-1) != 0)


class TokenClassLoss(LossModule):
    """Sum over labelled tokens of what transformers' own head takes the mean of. With class weights a token's loss is
    multiplied by that of its label, and not divided by those of its neighbours."""

    tells_sources: ClassVar[bool] = True

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.head is None:
            raise ValueError("a head is required, whose labels are known")
        logits = wide(self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits)
        weights = logits.new_tensor(self.head.weights) if self.head.weights else None
        labels = continued(batch["labels"], batch["first"], self.head.labels)
        self.note_figures(logits, labels, batch["first"], self.head.labels)
        chosen = labels != IGNORE_INDEX
        losses = cross_entropy(logits[chosen], labels[chosen], weight=weights, reduction="none")
        self.note_tokens(losses, batch, chosen)
        return losses.sum()

    @torch.no_grad()
    def note_figures(self, logits: Tensor, labels: Tensor, first: Tensor, names: Sequence[str]) -> None:
        """Of words, by their first tokens."""
        called, n = logits.argmax(dim=-1), len(names)
        self.note_sum("confusion", torch.bincount(labels[first] * n + called[first], minlength=n * n).view(n, n))
        if are_entities(names):
            pairs = [
                ([names[k] for k in row[chosen].tolist()], [names[k] for k in found[chosen].tolist()])
                for row, found, chosen in zip(labels.cpu(), called.cpu(), first.cpu(), strict=True)
            ]
            self.note_sum("entities", logits.new_tensor(counts_of(pairs)))


def continued(labels: Tensor, first: Tensor, names: Sequence[str]) -> Tensor:
    """(B, T) labels whose B- is I- behind the first token of a word, where there is such a label."""
    after = torch.arange(len(names), device=labels.device)
    for k, name in enumerate(names):
        if name.startswith("B-") and (inside := f"I-{name[2:]}") in names:
            after[k] = names.index(inside)
    later = (labels != IGNORE_INDEX) & ~first
    return torch.where(later, after[labels.clamp_min(0)], labels)

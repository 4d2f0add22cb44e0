"""Classification and regression of whole texts, by a head that is trained in full.

The model is stock transformers' own for the task, so what is trained is what `AutoModelForSequenceClassification` and
its pipelines compute: a decoder answers at its last token that is not the padding token, an encoder as its family does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from lrft.data import Rows
from lrft.data.collate import Form, collate
from lrft.model.head import Head
from lrft.objectives.base import Asked, LossModule, Objective
from lrft.objectives.class_weights import given_weights
from lrft.objectives.cross_entropy import wide
from lrft.objectives.figures import of_confusion, of_labels, spearman
from lrft.objectives.neftune import row_lengths
from lrft.objectives.sft import Outputs

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"
PROBLEMS = {"single-label": SINGLE, "multi-label": MULTI, "regression": NUMBER}
"""The recipe's words -> transformers'"""
NO_LABEL = -1


@dataclass(frozen=True)
class Classification(Objective):
    """A label, several labels or a number for a whole text, by a head trained in full beside the adapters."""

    name: ClassVar[str] = "classification"
    rows: ClassVar[str] = "labelled"
    rows_by: ClassVar[dict[str, dict[str, str]]] = {"problem": {"regression": "scored"}}
    head: ClassVar[str] = "sequence"
    # A label is of a whole text, of which whoever asks the model later reads the beginning too.
    defaults: ClassVar[dict[str, Any]] = {"data.too_long": "truncate"}
    unit: ClassVar[str] = "text"
    placed: ClassVar[tuple[str, ...]] = ("pairs",)
    ranked_by: ClassVar[dict[str, str]] = {
        "accuracy": "higher",
        "macro-F1": "higher",
        "micro-F1": "higher",
        "Matthews": "higher",
        "MSE": "lower",
        "Spearman": "higher",
    }

    problem: Literal["auto", "single-label", "multi-label", "regression"] = "auto"
    """auto: multi-label where labels are lists, else one label of several; regression: one output, squared error."""
    class_weights: Literal["none", "balanced"] | Annotated[tuple[float, ...], Field(strict=False)] = "none"
    """Factor on the loss of each label, in their order. balanced: by how rare it is among the train rows."""

    @classmethod
    def of_head(cls, head: Head) -> Classification:
        known: dict[str, Literal["single-label", "multi-label", "regression"]] = {
            SINGLE: "single-label",
            MULTI: "multi-label",
            NUMBER: "regression",
        }
        return cls(problem=known.get(head.problem, "auto"))

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(1 for _ in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["input_ids"])

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        """input_ids, attention_mask and, for models that tell two texts apart, token_type_ids, all int64 (B, T); labels
        float32 (B, m): numbers of the row's labels, filled up with -1, or its number; row, the ids (B,); rows, how many
        there are in the set, (). Raises ValueError for another form than padded."""
        if form != "padded":
            raise ValueError("a head answers padded batches")
        batch = collate(rows, ids, pad_id=pad_id, form=form)
        del batch["labels"]
        if "second" in rows.names:
            batch["token_type_ids"] = token_types(batch["attention_mask"], [rows.numbers("second", i) for i in ids])
        labels = [rows.numbers("label", i) for i in ids]
        filled = np.full((len(ids), max(1, *map(len, labels))), NO_LABEL, dtype=np.float32)
        for row, numbers in zip(filled, labels, strict=True):
            row[: len(numbers)] = numbers
        return batch | {"labels": torch.from_numpy(filled), "row": torch.tensor(ids), "rows": torch.tensor(len(rows))}

    def head_for(self, asked: Asked) -> Head:
        report = asked.report
        if self.rows_by["problem"].get(self.problem) and self.class_weights != "none":
            raise ValueError("class_weights are for labels, and problem: regression has none")
        if report.several and self.problem == "single-label":
            raise ValueError("problem is single-label, but labels are lists: expected multi-label")
        problem = PROBLEMS.get(self.problem, MULTI if report.several else SINGLE)
        names = tuple(report.labels)
        weights = self.weights_of(names, asked.train, problem)
        return Head(self.head, names, problem, asked.pad_id, asked.seed, weights)

    def weights_of(self, names: Sequence[str], train: Rows, problem: str) -> tuple[float, ...]:
        """Factors of the labels, none for equal ones. balanced: n / (labels x rows of the label), so that the mean over
        the train rows is 1; with several labels for a row, rows without over rows with it. Raises ValueError."""
        if self.class_weights != "balanced":
            return given_weights(self.class_weights, names)
        numbers = [train.numbers("label", i).astype(int) for i in range(len(train))]
        rows = np.bincount(np.concatenate(numbers), minlength=len(names)).astype(float)
        if problem == MULTI:
            return tuple(float((len(train) - n) / n) if n else 1.0 for n in rows)
        return tuple(float(len(train) / ((rows > 0).sum() * n)) if n else 1.0 for n in rows)

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        if "confusion" in sums:
            return of_confusion(sums["confusion"])
        if "counts" in sums:
            return of_labels(sums["counts"])
        found = {"MSE": (sums["squares"][0] / sums["squares"][1]).item()}
        return found | ({"Spearman": spearman(*sums["pairs"])} if "pairs" in sums else {})

    def module(self, model: nn.Module, *, direct: bool = False) -> ClassLoss:
        return ClassLoss(model)


def token_types(mask: Tensor, seconds: Sequence[np.ndarray]) -> Tensor:
    """1 for the tokens of a second text, int64 (B, T). seconds: where it begins in each row, empty without one."""
    places = torch.arange(mask.shape[1])[None]
    starts = torch.tensor([int(second[0]) if len(second) else mask.shape[1] for second in seconds])[:, None]
    return (places >= starts).long() * mask


class ClassLoss(LossModule):
    """Sum over rows of what transformers' own head takes the mean of: cross-entropy, the mean binary cross-entropy of
    the labels, or the squared error. With class weights a row's loss is multiplied by that of its label, and not
    divided by those of its neighbours: what a row teaches does not depend on who shares its step.
    """

    adds_extra: ClassVar[bool] = True
    mixes_copies: ClassVar[bool] = True
    tells_sources: ClassVar[bool] = True

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        if self.head is None:
            raise ValueError("a head is required, whose labels are known")
        logits, labels, copies = self.answer(batch), batch["labels"], self.copies()
        answer = {SINGLE: self.single, MULTI: self.several, NUMBER: self.number}[self.head.problem or SINGLE]
        if copies > 1 and not self.training:
            own = len(labels) // copies
            batch = {**batch, "row": batch["row"][:own]}
            return answer(mixed(logits, copies, self.head.problem), labels[:own], batch).sum()
        losses = answer(logits, labels, batch)
        self.note_rows(losses, batch)
        total = losses.sum() / copies
        outputs = Outputs(
            labels,
            lambda: logits,
            lambda: self.base_answer(batch),
            of_texts=True,
            places=row_lengths(batch) > 0,
            again=lambda: self.answer(batch),
        )
        if not self.training or self.extra is None or (term := self.extra(outputs)) is None:
            return total
        added = len(labels) * term / copies
        self.last_extra = added.detach()
        return total + added

    def answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits (rows, labels), float32."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        return wide(self.model(**{name: batch[name] for name in names if name in batch}).logits)

    @torch.no_grad()
    def base_answer(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The same of the untouched base with the head as it started. Raises ValueError where nobody has said how."""
        if self.as_base is None:
            raise ValueError("base logits require as_base")
        with self.as_base():
            return self.answer(batch)

    def factors(self, logits: Tensor) -> Tensor | None:
        weights = self.head.weights if self.head is not None else ()
        return logits.new_tensor(weights) if weights else None

    def single(self, logits: Tensor, labels: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of each row, (rows,), as `several` and `number`."""
        target, n = labels[:, 0].long(), logits.shape[1]
        cells = target * n + logits.argmax(dim=1)
        self.note_sum("confusion", torch.bincount(cells, minlength=n * n).view(n, n))
        return cross_entropy(logits, target, weight=self.factors(logits), reduction="none")

    def several(self, logits: Tensor, labels: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        n = logits.shape[1]
        places = torch.where(labels < 0, n, labels).long()
        target = logits.new_zeros(len(logits), n + 1).scatter_(1, places, 1.0)[:, :n]
        called = (logits > 0).to(target.dtype)
        hits = [called * target, called * (1 - target), (1 - called) * target]
        self.note_sum("counts", torch.stack([hit.sum(dim=0) for hit in hits]))
        factors = self.factors(logits)
        return binary_cross_entropy_with_logits(logits, target, pos_weight=factors, reduction="none").sum(dim=1) / n

    def number(self, logits: Tensor, labels: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        found, target = logits[:, 0], labels[:, 0].to(logits.dtype)
        squares = (found - target).square()
        self.note("squares", squares)
        if not self.training:  # ranks need all rows: each batch gives those of its own
            pairs = squares.new_zeros(2, int(batch["rows"]), dtype=torch.float64)
            self.note_sum("pairs", pairs.index_copy(1, batch["row"], torch.stack([found, target]).detach().double()))
        return squares


def mixed(logits: Tensor, copies: int, problem: str) -> Tensor:
    """Logits of the mean of the copies' probabilities, (rows, labels), of logits (copies rows, labels); of a number the
    mean."""
    several = logits.unflatten(0, (copies, -1))
    if problem == NUMBER:
        return several.mean(dim=0)
    if problem == MULTI:
        return several.sigmoid().mean(dim=0).logit()
    return several.log_softmax(-1).logsumexp(dim=0) - math.log(copies)

"""Kahneman-Tversky optimisation, of single answers. Ethayarajh et al., 2024, arXiv 2402.01306, equation 8."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import Form, collate
from lrft.data.dataset import Row
from lrft.objectives.base import Forwards, LossModule, Objective
from lrft.objectives.log_probabilities import log_probabilities
from lrft.objectives.pairs import REFERENCE, references

OTHER = "other."
"""before the names of a batch's mismatched sequences"""
KL = "KL"


@dataclass(frozen=True)
class Kto(Objective):
    """Kahneman-Tversky optimisation: answers that are labelled good or bad, one by one, measured against the base.

    With r = log(p / p_base) of an answer and z the mean of the same over prompts with answers of other rows, at least
    0, the loss of a good answer is desirable_weight (1 - sigmoid(beta (r - z))), that of a bad one undesirable_weight
    (1 - sigmoid(beta (z - r))). z is that of the whole optimiser step, without gradient.
    """

    name: ClassVar[str] = "kto"
    rows: ClassVar[str] = "kto"
    ranked_by: ClassVar[dict[str, str]] = {"reward margin": "higher"}
    rate_factor: ClassVar[float] = 0.05
    unit: ClassVar[str] = "answer"
    referenced: ClassVar[bool] = True

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the base; the larger, the closer the model stays."""
    desirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of good answers; good and bad ones should weigh about the same in all."""
    undesirable_weight: Annotated[float, Field(gt=0)] = 1.0
    """Weight of bad answers."""
    reference: Literal["cached", "each-step"] = "cached"
    """When the base is asked: once before training, kept with the rows' cache, or in each step."""

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(1 for _ in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return len(batch["label"])

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        others = Rows.of([mismatched(rows, i) for i in ids])
        other = collate(others, range(len(others)), pad_id=pad_id, form=form)
        label = torch.tensor([rows.numbers("good", i)[0] for i in ids])
        batch = collate(rows, ids, pad_id=pad_id, form=form) | {
            f"{OTHER}{name}": value for name, value in other.items()
        }
        return batch | {"label": label} | references(rows, ids)

    def forwards(self) -> Forwards:
        """The mismatched answers are about as long as the rows."""
        cached = self.reference == "cached"
        return Forwards(before=2 if cached else 0, step=1 if cached else 3)

    def figures(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().figures(sums)
        rewards = [found.get(f"{which} reward") for which in ("chosen", "rejected")]
        margin = {} if None in rewards else {"reward margin": rewards[0] - rewards[1]}  # type: ignore[operator]
        return margin | found

    def module(self, model: nn.Module, *, direct: bool = False) -> KtoLoss:
        return KtoLoss(model, self, direct=direct)


def mismatched(rows: Rows, i: int) -> Row:
    """The prompt of row i with the answer of the row after it, no longer than the longest row."""
    j = (i + 1) % len(rows)
    prompt, (tokens, trained) = rows.prompt(i), rows.sequences(j)[0]
    start, most = len(rows.prompt(j)), int(rows.longest.max())
    kept = max(1, most - len(tokens[start:]))
    ids = np.concatenate([prompt[-kept:], tokens[start:]])
    marks = np.concatenate([np.zeros(len(prompt[-kept:]), dtype=bool), trained[start:]])
    return Row(ids, marks, 0, "", "", 0)


class KtoLoss(LossModule):
    """Sum of the losses of answers. `ahead`: (sum of the log-ratios of mismatched answers, their number)."""

    tells_sources: ClassVar[bool] = True
    looks_ahead: bool = True

    def __init__(self, model: nn.Module, objective: Kto, *, direct: bool = False) -> None:
        super().__init__(model)
        self.objective, self.direct = objective, direct
        self.constant = (REFERENCE,) if objective.reference == "cached" else ()

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        o, label = self.objective, batch["label"]
        ahead = self.look(batch) if self.ahead is None else self.ahead
        own, _ = log_probabilities(self.model, batch, direct=self.direct)
        ratios = own - self.reference(batch, own, 0)
        z = (ahead[0] / ahead[1]).clamp(min=0).to(own.dtype)
        good = label > 0.5
        sign, weight = torch.where(good, 1.0, -1.0), torch.where(good, o.desirable_weight, o.undesirable_weight)
        losses = weight.to(own.dtype) * (1 - torch.sigmoid(o.beta * sign.to(own.dtype) * (ratios - z)))
        for name, chosen in (("chosen", good), ("rejected", ~good)):
            self.note(f"{name} reward", o.beta * ratios[chosen])
            self.note(f"{name} log-probability", own[chosen])
        self.note(KL, z.expand(len(label)))
        self.note_rows(losses, batch)
        return losses.sum()

    @torch.no_grad()
    def look(self, batch: Mapping[str, Tensor]) -> Tensor:
        other = {name.removeprefix(OTHER): value for name, value in batch.items() if name.startswith(OTHER)}
        own, _ = log_probabilities(self.model, other, direct=self.direct)
        reference = self.reference(other | {k: v for k, v in batch.items() if k == REFERENCE}, own, 1)
        ratios = (own - reference).double()
        return torch.stack([ratios.sum(), ratios.new_tensor(len(ratios))])

    def reference(self, batch: Mapping[str, Tensor], own: Tensor, column: int) -> Tensor:
        """(S,) log-probabilities of the reference: the batch's, else asked for; the model's own where it is the base.

        column: 0 for the rows' own answers, 1 for mismatched ones.
        """
        if REFERENCE in batch:
            return batch[REFERENCE][:, column].to(own.dtype)
        if self.as_reference is None:
            return own.detach()
        with self.as_reference():
            return log_probabilities(self.model, batch, direct=self.direct)[0]

    def constants(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        other = {name.removeprefix(OTHER): value for name, value in batch.items() if name.startswith(OTHER)}
        both = [log_probabilities(self.model, each, direct=self.direct)[0] for each in (batch, other)]
        return {REFERENCE: torch.stack(both, dim=1)}

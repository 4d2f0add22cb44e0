"""What objectives over pairs of answers have in common: batches, log-probabilities, the reference, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrft.data import Rows
from lrft.data.collate import Form, collate
from lrft.objectives import shared_prompt
from lrft.objectives.base import Forwards, LossModule, Objective
from lrft.objectives.log_probabilities import log_probabilities, sequences_in

REFERENCE = "reference"


@dataclass(frozen=True)
class Pairs:
    """n pairs of answers, each (n,) and at least float32: log-probabilities of whole answers and their tokens.

    The references are those of what training started from, without gradient; None for an objective without one.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    chosen_reference: Tensor | None = None
    rejected_reference: Tensor | None = None

    @property
    def per_token(self) -> Pairs:
        """The same with log-probabilities that are means over the tokens of an answer."""
        chosen, rejected = self.chosen_tokens, self.rejected_tokens
        return Pairs(
            self.chosen / chosen,
            self.rejected / rejected,
            chosen,
            rejected,
            None if self.chosen_reference is None else self.chosen_reference / chosen,
            None if self.rejected_reference is None else self.rejected_reference / rejected,
        )

    @property
    def ratios(self) -> tuple[Tensor, Tensor]:
        """log(policy / reference) of the chosen and of the rejected answers. Raises ValueError without a reference."""
        if self.chosen_reference is None or self.rejected_reference is None:
            raise ValueError("pairs without a reference")
        return self.chosen - self.chosen_reference, self.rejected - self.rejected_reference


@dataclass(frozen=True)
class PairObjective(Objective):
    """Abstract: rows are pairs, each of which counts one. A subclass says what a pair's loss is."""

    unit: ClassVar[str] = "pair"
    shares_prompts: ClassVar[bool] = True
    whole_step: ClassVar[bool] = False
    """whether `losses` asks for the mean reward of the whole step"""

    def losses(self, pairs: Pairs, mean_reward: Tensor | None) -> Tensor:
        """(n,)"""
        raise NotImplementedError("abstract")

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Of the chosen and of the rejected answers, (n,) each: what the objective takes for their worth."""
        raise NotImplementedError("abstract")

    def weight(self, rows: Rows, ids: Iterable[int]) -> int:
        return sum(1 for _ in ids)

    def batch_weight(self, batch: Mapping[str, Tensor]) -> int:
        return sequences_in(batch) // 2

    def collate(self, rows: Rows, ids: Sequence[int], *, pad_id: int, form: Form) -> dict[str, Tensor]:
        shared = form == "shared"
        batch = shared_prompt.collate(rows, ids) if shared else collate(rows, ids, pad_id=pad_id, form=form)
        return batch | references(rows, ids)

    def forwards(self) -> Forwards:
        asked = self.referenced and getattr(self, REFERENCE) != "cached"
        return Forwards(before=self.referenced and not asked, step=asked + self.whole_step * (1 + asked))

    def module(self, model: nn.Module, *, direct: bool = False) -> PairLoss:
        return PairLoss(model, self, direct=direct)


def references(rows: Rows, ids: Sequence[int]) -> dict[str, Tensor]:
    """{"reference": (rows, sequences)} where the rows carry what was computed before, else nothing."""
    if REFERENCE not in rows.names:
        return {}
    return {REFERENCE: torch.stack([torch.from_numpy(rows.numbers(REFERENCE, i).copy()) for i in ids])}


def preferred(chosen: Tensor, rejected: Tensor) -> Tensor:
    """float64 (n,) of rewards (n,): 1 where the chosen answer has the larger one, 0.5 where both are equal, as they are
    before the first step."""
    return ((chosen - rejected).detach().sign().double() + 1) / 2


class PairLoss(LossModule):
    """Sum of the losses of pairs. Sequences of a batch come as chosen, rejected, chosen, rejected, ..."""

    tells_sources: ClassVar[bool] = True

    def __init__(self, model: nn.Module, objective: PairObjective, *, direct: bool = False) -> None:
        super().__init__(model)
        self.objective, self.direct = objective, direct
        self.looks_ahead = objective.whole_step
        self.constant = (REFERENCE,) if objective.referenced and getattr(objective, REFERENCE) == "cached" else ()

    def sum_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        pairs = self.pairs(batch)
        chosen, rejected = self.objective.rewards(pairs)
        mean = None
        if self.looks_ahead:
            sums = self.sums_of_rewards(pairs) if self.ahead is None else self.ahead
            mean = (sums[0] / sums[1]).to(pairs.chosen.dtype)
        losses = self.objective.losses(pairs, mean)
        self.note("reward accuracy", preferred(chosen, rejected))
        self.note("reward margin", chosen - rejected)
        self.note("chosen reward", chosen)
        self.note("rejected reward", rejected)
        self.note("chosen log-probability", pairs.chosen)
        self.note("rejected log-probability", pairs.rejected)
        self.note_rows(losses, batch)
        return losses.sum()

    def pairs(self, batch: Mapping[str, Tensor]) -> Pairs:
        sums, tokens = log_probabilities(self.model, batch, direct=self.direct)
        reference = self.reference(batch, sums) if self.objective.referenced else None
        of_reference = () if reference is None else (reference[::2], reference[1::2])
        return Pairs(sums[::2], sums[1::2], tokens[::2], tokens[1::2], *of_reference)

    def reference(self, batch: Mapping[str, Tensor], own: Tensor) -> Tensor:
        """(S,) log-probabilities of the reference: the batch's, else asked for, else the model's own."""
        if REFERENCE in batch:
            return batch[REFERENCE].flatten().to(own.dtype)
        if self.as_reference is None:
            return own.detach()
        with self.as_reference():
            return log_probabilities(self.model, batch, direct=self.direct)[0]

    def look(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.sums_of_rewards(self.pairs(batch))

    def sums_of_rewards(self, pairs: Pairs) -> Tensor:
        """(sum of the rewards of all answers, their number)"""
        rewards = torch.cat(self.objective.rewards(pairs)).detach().double()
        return torch.stack([rewards.sum(), rewards.new_tensor(len(rewards))])

    def constants(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sums, _ = log_probabilities(self.model, batch, direct=self.direct)
        return {REFERENCE: sums.view(-1, 2)}

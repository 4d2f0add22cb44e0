"""Odds ratio preference optimisation. Hong et al., 2024, arXiv 2403.07691, equations 6 and 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from lrft.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class Orpo(PairObjective):
    """Odds ratio preference optimisation: token loss and log odds ratio, without a reference.

    A pair's loss is -a - beta log sigmoid(log(odds(a) / odds(b))), a and b the mean log-probabilities of the tokens of
    the chosen and of the rejected answer, and odds(a) = e^a / (1 - e^a).
    """

    name: ClassVar[str] = "orpo"
    rows: ClassVar[str] = "preference"
    ranked_by: ClassVar[dict[str, str]] = {"reward accuracy": "higher"}
    rate_factor: ClassVar[float] = 0.05

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Weight of the odds ratio, lambda in the paper."""

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        means = pairs.per_token
        return self.beta * means.chosen, self.beta * means.rejected

    def losses(self, pairs: Pairs, mean_reward: Tensor | None) -> Tensor:
        means = pairs.per_token
        odds = [p - log1m_exp(p) for p in (means.chosen, means.rejected)]
        return -means.chosen - self.beta * logsigmoid(odds[0] - odds[1])


def log1m_exp(p: Tensor) -> Tensor:
    """log(1 - e^p) for p < 0, without loss of digits at either end."""
    p = p.clamp(max=-torch.finfo(p.dtype).eps)
    return torch.where(p > -0.693, torch.log(-torch.expm1(p)), torch.log1p(-torch.exp(p)))

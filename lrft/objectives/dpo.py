"""Direct preference optimisation, and losses of the same log-ratios. Rafailov et al., 2023, arXiv 2305.18290."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from lrft.objectives.pairs import PairObjective, Pairs

LEAST_SMOOTHING = 1e-3
"""of exo_pair, whose loss is infinite without any"""


@dataclass(frozen=True)
class Dpo(PairObjective):
    """Direct preference optimisation: the chosen answer gains over the rejected one, measured against the base.

    With h = log(p / p_base) of the chosen answer minus that of the rejected one, a pair's loss is -log sigmoid(beta h),
    or what `loss` says of both rewards, beta log(p / p_base). The base is the model with its adapters switched off.
    """

    name: ClassVar[str] = "dpo"
    rows: ClassVar[str] = "preference"
    ranked_by: ClassVar[dict[str, str]] = {"reward accuracy": "higher"}
    rate_factor: ClassVar[float] = 0.05
    referenced: ClassVar[bool] = True
    only_with: ClassVar[dict[str, Any]] = {
        "label_smoothing": ("loss", ("sigmoid", "robust", "exo_pair")),
        "temperature": ("loss", ("discopop",)),
    }

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the base; the larger, the closer the model stays."""
    loss: Literal[
        "sigmoid",
        "ipo",
        "hinge",
        "robust",
        "exo_pair",
        "bco_pair",
        "nca_pair",
        "apo_zero",
        "apo_down",
        "sppo_hard",
        "discopop",
    ] = "sigmoid"
    """Loss of a pair: sigmoid (DPO), ipo, hinge (SLiC), robust, exo_pair (EXO), bco_pair (BCO), nca_pair (NCA),
    apo_zero or apo_down (APO), sppo_hard (SPPO), discopop."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round: conservative DPO with sigmoid; of robust and exo_pair."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Of discopop: how fast its two parts are mixed, tau in the paper."""
    rpo_alpha: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the chosen answer's loss per token, added to the loss (RPO)."""
    length_normalized: Literal["auto"] | bool = "auto"
    """Takes log-probabilities per token instead of whole answers; auto: with ipo alone."""
    reference: Literal["cached", "each-step"] = "cached"
    """When the base is asked: once before training, kept with the rows' cache, or in each step."""

    @property
    def whole_step(self) -> bool:  # type: ignore[override]
        return self.loss == "bco_pair"

    def measured(self, pairs: Pairs) -> Pairs:
        normalised = self.loss == "ipo" if self.length_normalized == "auto" else self.length_normalized
        return pairs.per_token if normalised else pairs

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.measured(pairs).ratios
        return self.beta * chosen, self.beta * rejected

    def losses(self, pairs: Pairs, mean_reward: Tensor | None) -> Tensor:
        a, b = self.rewards(pairs)
        if mean_reward is not None:
            a, b = a - mean_reward, b - mean_reward
        losses = FORMULAS[self.loss](a, b, self)
        return losses - self.rpo_alpha * pairs.chosen / pairs.chosen_tokens if self.rpo_alpha else losses


def sigmoid(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """Of the rewards a of the chosen and b of the rejected answers, (n,), as all here."""
    s = o.label_smoothing
    return -(1 - s) * logsigmoid(a - b) - s * logsigmoid(b - a)


def ipo(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2310.12036, equation 17."""
    return ((a - b) / o.beta - 1 / (2 * o.beta)) ** 2


def hinge(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2305.10425."""
    return relu(1 - (a - b))


def robust(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2403.00409, equation 12."""
    s = o.label_smoothing
    return (-(1 - s) * logsigmoid(a - b) + s * logsigmoid(b - a)) / (1 - 2 * s)


def exo_pair(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2402.00856, equation 16."""
    z, s = a - b, o.label_smoothing or LEAST_SMOOTHING
    first = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-s))
    return first + torch.sigmoid(-z) * (logsigmoid(-z) - math.log(s))


def bco_pair(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2404.04656, of rewards less their mean."""
    return -logsigmoid(a) - logsigmoid(-b)


def nca_pair(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2402.05369, NCA of two answers, of which one is preferred for certain."""
    return -logsigmoid(a) - 0.5 * logsigmoid(-a) - 0.5 * logsigmoid(-b)


def apo_zero(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2408.06266, equation 7: for chosen answers that are better than the model's own."""
    return torch.sigmoid(-a) + torch.sigmoid(b)


def apo_down(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2408.06266, equation 8: for chosen answers that are worse than the model's own."""
    return torch.sigmoid(a) + torch.sigmoid(b - a)


def sppo_hard(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2405.00675, equation 4.7, where the chosen answer wins for certain."""
    return ((a - 0.5) / o.beta) ** 2 + ((b + 0.5) / o.beta) ** 2


def discopop(a: Tensor, b: Tensor, o: Dpo) -> Tensor:
    """arXiv 2406.08414, equation 5."""
    z = a - b
    share = torch.sigmoid(z / o.temperature)
    return -(1 - share) * logsigmoid(z) + share * torch.exp(-z)


FORMULAS = {
    formula.__name__: formula
    for formula in (
        *(sigmoid, ipo, hinge, robust, exo_pair, bco_pair),
        *(nca_pair, apo_zero, apo_down, sppo_hard, discopop),
    )
}

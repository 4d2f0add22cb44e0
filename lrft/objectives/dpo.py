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
    or what `loss` says. The base is the model with its adapters switched off.
    """

    name: ClassVar[str] = "dpo"
    rows: ClassVar[str] = "preference"
    rate_factor: ClassVar[float] = 0.05
    referenced: ClassVar[bool] = True
    only_with: ClassVar[dict[str, Any]] = {"label_smoothing": ("loss", ("sigmoid", "robust", "exo_pair"))}

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the pull towards the base; the larger, the closer the model stays."""
    loss: Literal["sigmoid", "ipo", "hinge", "robust", "exo_pair", "bco_pair"] = "sigmoid"
    """Loss of a pair: sigmoid (DPO), ipo, hinge (SLiC), robust, exo_pair (EXO) or bco_pair (BCO)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round: conservative DPO with sigmoid; of robust and exo_pair."""
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
        chosen, rejected = self.rewards(pairs)
        losses = self.of_margins(chosen - rejected)
        if mean_reward is not None:
            losses = -logsigmoid(chosen - mean_reward) - logsigmoid(mean_reward - rejected)
        return losses - self.rpo_alpha * pairs.chosen / pairs.chosen_tokens if self.rpo_alpha else losses

    def of_margins(self, z: Tensor) -> Tensor:
        """The losses of z = beta h, (n,)."""
        s = self.label_smoothing
        if self.loss == "ipo":  # arXiv 2310.12036, equation 17
            return (z / self.beta - 1 / (2 * self.beta)) ** 2
        if self.loss == "hinge":  # arXiv 2305.10425
            return relu(1 - z)
        if self.loss == "robust":  # arXiv 2403.00409, equation 12
            return (-(1 - s) * logsigmoid(z) + s * logsigmoid(-z)) / (1 - 2 * s)
        if self.loss == "exo_pair":  # arXiv 2402.00856, equation 16
            s = s or LEAST_SMOOTHING
            first = torch.sigmoid(z) * (logsigmoid(z) - math.log1p(-s))
            return first + torch.sigmoid(-z) * (logsigmoid(-z) - math.log(s))
        return -(1 - s) * logsigmoid(z) - s * logsigmoid(-z)

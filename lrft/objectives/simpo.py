"""Simple preference optimisation. Meng et al., 2024, arXiv 2405.14734, equation 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from lrft.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class Simpo(PairObjective):
    """Simple preference optimisation: log-probabilities per token, with a margin and without a reference.

    A pair's loss is -log sigmoid(beta (a - b) - gamma), a and b the mean log-probabilities of the tokens of the chosen
    and of the rejected answer.
    """

    name: ClassVar[str] = "simpo"
    rows: ClassVar[str] = "preference"
    ranked_by: ClassVar[dict[str, str]] = {"reward accuracy": "higher"}
    rate_factor: ClassVar[float] = 0.05

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the reward."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Margin by which the chosen answer's reward is to be larger."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round."""

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        means = pairs.per_token
        return self.beta * means.chosen, self.beta * means.rejected

    def losses(self, pairs: Pairs, mean_reward: Tensor | None) -> Tensor:
        chosen, rejected = self.rewards(pairs)
        z, s = chosen - rejected - self.gamma, self.label_smoothing
        return -(1 - s) * logsigmoid(z) - s * logsigmoid(-z)

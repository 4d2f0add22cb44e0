"""Contrastive preference optimisation. Xu et al., 2024, arXiv 2401.08417, equation 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from lrft.objectives.pairs import PairObjective, Pairs


@dataclass(frozen=True)
class Cpo(PairObjective):
    """Contrastive preference optimisation: DPO with a uniform reference, and the token loss of the chosen answer.

    A pair's loss is -log sigmoid(beta (a - b)) - alpha a / n, a and b the log-probabilities of the chosen answer, of n
    tokens, and of the rejected one.
    """

    name: ClassVar[str] = "cpo"
    rows: ClassVar[str] = "preference"
    ranked_by: ClassVar[dict[str, str]] = {"reward accuracy": "higher"}
    rate_factor: ClassVar[float] = 0.05
    only_with: ClassVar[dict[str, Any]] = {"label_smoothing": ("loss", ("sigmoid",))}

    beta: Annotated[float, Field(gt=0)] = 0.1
    """Scale of the reward."""
    loss: Literal["sigmoid", "hinge"] = "sigmoid"
    """Loss of a pair."""
    alpha: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the chosen answer's loss per token."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Probability that a pair is the wrong way round; of sigmoid."""

    def rewards(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        return self.beta * pairs.chosen, self.beta * pairs.rejected

    def losses(self, pairs: Pairs, mean_reward: Tensor | None) -> Tensor:
        chosen, rejected = self.rewards(pairs)
        z, s = chosen - rejected, self.label_smoothing
        losses = relu(1 - z) if self.loss == "hinge" else -(1 - s) * logsigmoid(z) - s * logsigmoid(-z)
        return losses - self.alpha * pairs.chosen / pairs.chosen_tokens

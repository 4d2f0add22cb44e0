"""The correlation term of LoRB. Yu et al., 2023, arXiv 2309.15223, for language models: a reconstruction.

    loss + strength sum_{i != j} R_ij^2 / (w (w - 1)),    R (w, w) the correlations of the features over the rows

of a micro-batch: of the decoder's last hidden state (w,) at each row's last token. The paper rescores sentences of
speech by one hidden state of each, and penalises |R - I|. n rows have at most n - 1 independent features, so for n < w
the term has a floor; it sees one micro-batch at a time, and none of a single row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.part import Outputs, Part, Run
from lrft.model.layers import decoder_of

TINY = 1e-6  # on the variance of a feature


@dataclass(frozen=True)
class LorbCorrelation(Part):
    """Keeps the features of the rows' last hidden states from saying the same: correlations are drawn to zero."""

    name: ClassVar[str] = "lorb-correlation"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2309.15223"
    equation: ClassVar[str] = "loss + c mean of the squared correlations between two features over the rows"
    evidence: ClassVar[str] = "reconstruction from descriptions of the paper"

    strength: Annotated[float, Field(ge=0)] = 0.01
    """c, weight of the penalty; no published value, default chosen by lrft."""

    @cached_property
    def seen(self) -> dict[str, Tensor]:
        """The last hidden states (n, w) of the present pass."""
        return {}

    @cached_property
    def watched(self) -> set[int]:
        return set()

    @property
    def acts_between_passes(self) -> bool:
        return False  # it only begins to watch

    def before_step(self, run: Run) -> None:
        decoder = decoder_of(run.model)
        if self.strength and id(decoder) not in self.watched:
            self.watched.add(id(decoder))
            decoder.register_forward_hook(self.watch, with_kwargs=True)

    def watch(self, decoder: nn.Module, _: Any, given: dict[str, Any], out: Any) -> None:
        if torch.is_grad_enabled():  # not the base's pass, nor an evaluation
            hidden = out.last_hidden_state
            self.seen["last"] = hidden[torch.arange(len(hidden)), last_tokens(hidden, given.get("attention_mask"))]

    def output_loss(self, run: Run, outputs: Outputs) -> Tensor | None:
        last = self.seen.pop("last", None)
        if last is None or len(last) < 2:
            return None
        return self.strength * correlation(last.to(torch.promote_types(last.dtype, torch.float32)))


def last_tokens(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """The place (n,) of each row's last token that is no padding, for hidden (n, T, w) and mask (n, T) or None."""
    places = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
    return (places if mask is None or mask.ndim != 2 else places * mask).argmax(dim=1)


def correlation(features: Tensor) -> Tensor:
    """The mean squared correlation between two of the w features (n, w). With n < w by the smaller (n, n) product."""
    n, w = features.shape
    centred = features - features.mean(dim=0)
    unit = centred / (centred.square().mean(dim=0) + TINY).sqrt() / n**0.5
    squares = (unit @ unit.T if n < w else unit.T @ unit).square().sum() - unit.square().sum(dim=0).square().sum()
    return squares / (w * (w - 1))

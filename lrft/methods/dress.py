"""DReSS. Feng et al., 2025, arXiv 2501.17905: what will be pruned is regularised first. A reconstruction: no code.

Heads and channels are chosen before the first step, those with the smallest weights. For a share of the run a penalty
on all that belongs to them,

    strength(t) sum |w|  or  strength(t) sum w^2,   w their rows and columns of the adapted weights,

which grows from 0 to `strength`, moves what they do into the others. Then they are masked, all at once, and what is
left of the run is the recovery that the paper calls optional. It trains whole weights, as the paper does, unless the
recipe names another method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.part import Run
from lrft.adapters.pruning import MaskingPart, keep, unmasked_weight
from lrft.model.pruning import cut, highest, magnitudes


@dataclass(frozen=True)
class Dress(MaskingPart):
    """Pulls chosen heads and channels towards zero, then prunes them, then trains the rest."""

    name: ClassVar[str] = "dress"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2501.17905"
    equation: ClassVar[str] = "W + dW with a penalty on chosen heads and channels, then without these"
    exports: ClassVar[str] = "merged model only, smaller by what was pruned"
    evidence: ClassVar[str] = "reconstruction, no code released; pruned against a smaller plain model"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("base", "forward")
    requires: ClassVar[tuple[str, ...]] = ("delta",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.25
    """Share of each block's heads and channels that is pruned."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the run before they are pruned."""
    strength: Annotated[float, Field(ge=0)] = 1.0
    """Largest weight of the penalty; 0: nothing is done before pruning. The best of five on a tiny task."""
    norm: Literal["l1", "l2"] = "l2"
    """Of the penalty: sum of |w| or of w^2."""

    def removal(self, total: int) -> int:
        """The step, counted from 0, before which units are pruned; one at least comes before it."""
        return max(1, round(self.share * total))

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        for units in self.units(run):
            if units.name not in self.memory:
                scores = magnitudes(units, lambda layer: unmasked_weight(run, layer))
                chosen = torch.ones(units.count, dtype=torch.bool, device=scores.device)
                chosen[highest(scores, units.count - cut(units.count, self.ratio))] = False
                self.memory[units.name] = chosen
            if run.step >= self.removal(run.total_steps):
                keep(run, units, ~self.memory[units.name])

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step + 1 == run.total_steps:  # where no step is left for the recovery
            for units in self.units(run):
                keep(run, units, ~self.memory[units.name])

    def finished(self, step: int, total: int) -> bool:
        return step > self.removal(total) or step == total

    def loss(self, run: Run) -> Tensor | None:
        end = self.removal(run.total_steps)
        if not self.strength or run.step >= end:
            return None
        sums = [values.abs().sum() if self.norm == "l1" else values.square().sum() for values in self.doomed(run)]
        return self.strength * (run.step + 1) / end * torch.stack(sums).sum() if sums else None

    def doomed(self, run: Run) -> Iterator[Tensor]:
        """The rows, or columns of readers, of each adapted layer that will be pruned."""
        for units in self.units(run):
            chosen = self.memory[units.name].nonzero().flatten()
            for layer in (*units.rows, units.reader):
                if layer in run.adapters and len(chosen):
                    W, reads = unmasked_weight(run, layer), layer == units.reader
                    indices = (units.kept_columns(chosen) if reads else units.kept_rows(layer, chosen)).to(W.device)
                    yield W.index_select(1 if reads else 0, indices)

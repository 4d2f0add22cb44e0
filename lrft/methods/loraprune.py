"""LoRAPrune. Zhang et al., 2023, arXiv 2305.18403; the rule is that of the released code.

    importance of an entry of a weight  |(gB A + B gA - gB gA) o (W + s B A)|,   gA, gB the gradients of A and B

summed over each head and each channel, scaled to norm 1 for each matrix, added up over the matrices of a block, and
averaged over the steps. The least important ones of each block are masked, more and more of them on a cubic schedule.

A head is a key-value head with the queries that read it, where the code counts 32 heads whatever the model. At the end
exactly the share `ratio` is pruned (the code's last pruning is before its schedule gets there), and all blocks have
the same number left, so that merging gives a smaller model: `spare` leaves the code's blocks whole. B A is not scaled
into the weight's gradient, as there; the mean over the steps keeps its value where a step has none that is finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.part import Run
from lrft.adapters.pruning import MaskingPart, keep, kept, unmasked_weight
from lrft.model.pruning import Units, cut

KEPT_SHARE = 0.9  # of the mean over the steps, at each


@dataclass(frozen=True)
class LoraPrune(MaskingPart):
    """Prunes the heads and channels of the base that the adapter's gradients call unimportant, during the run."""

    name: ClassVar[str] = "loraprune"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2305.18403"
    equation: ClassVar[str] = "W + s B A without the heads and channels of the least |(gB A + B gA - gB gA) o W|"
    exports: ClassVar[str] = "merged model only, smaller by what was pruned"
    evidence: ClassVar[str] = "importance, masks and schedule against the released code"
    slots: ClassVar[tuple[str, ...]] = ("base", "forward")
    requires: ClassVar[tuple[str, ...]] = ("pair", "delta")
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each block's heads and channels that is pruned at the end. The authors: 0.5."""
    initial: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Share of the run before the first pruning. The authors: 0.1."""
    final: Annotated[float, Field(gt=0, le=0.5)] = 0.1
    """Share of the run after the last one. The authors: 0.1."""
    every: Annotated[int, Field(ge=1)] = 10
    """Steps from one pruning to the next. The authors: 10."""
    spare: bool = False
    """Leave the first tenth of the blocks and the last one whole, as the released code does."""

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        done, pruned = run.step + 1, [units for units in self.units(run) if not self.spares(run, units)]
        new = {units.name: importance(run, units) for units in pruned}
        if all(values.isfinite().all() for values in new.values()):
            for name, values in new.items():
                before = self.memory.get(name, torch.zeros_like(values)).to(values.device)
                self.memory[name] = KEPT_SHARE * before + (1 - KEPT_SHARE) * values
        share = self.share(done, run.total_steps)
        last = share == self.ratio != self.share(done - 1, run.total_steps)
        if share and (last or done % self.every == 0):
            for units in pruned:
                self.mask(run, units, cut(units.count, share))

    def finished(self, step: int, total: int) -> bool:
        return self.share(step, total) == self.ratio

    def share(self, done: int, total: int) -> float:
        """Share that is to be pruned at step `done`, counted from 1."""
        first, last = self.initial * total, (1 - self.final) * total
        if done <= first:
            return 0.0
        if done > last or done == total:
            return self.ratio
        return self.ratio * (1 - (1 - (done - first) / (last - first)) ** 3)

    def mask(self, run: Run, units: Units, n: int) -> None:
        """Mask the n least important units, those that are masked already first."""
        left = kept(run, units)
        if n > int((~left).sum()) and units.name in self.memory:
            order = self.memory[units.name].to(left.device).masked_fill(~left, -1).argsort(stable=True)
            left[order[:n]] = False
            keep(run, units, left)

    def spares(self, run: Run, units: Units) -> bool:
        blocks = 1 + max(other.depth for other in self.units(run))
        return self.spare and (units.depth < blocks // 10 or units.depth == blocks - 1)


def importance(run: Run, units: Units) -> Tensor:
    """(count,): that of one step, over all matrices of `units` that have a pair."""
    total = []
    for layer in (*units.rows, units.reader):
        if layer in run.adapters:
            sums = units.sums(layer, (slope(run.adapters[layer]) * unmasked_weight(run, layer)).abs())
            total.append(sums / (torch.linalg.vector_norm(sums) + 1e-8))
    return torch.stack(total).sum(0)


def slope(adapter: nn.Module) -> Tensor:
    """(d, k): what the code takes for the gradient of the weight."""
    parts = []
    for module in adapter.modules():
        A, B = getattr(module, "A", None), getattr(module, "B", None)
        if isinstance(A, Tensor) and isinstance(B, Tensor) and (A.grad is not None or B.grad is not None):
            gA, gB = (torch.zeros_like(p) if p.grad is None else p.grad for p in (A, B))
            parts.append(gB @ A + B @ gA - gB @ gA)
    return torch.stack(parts).sum(0)

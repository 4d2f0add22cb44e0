"""Fast Forward. Rahamim et al., 2024, arXiv 2409.04206: along a good step one can go further.

Every so many steps the change d that the last one made is added again and again while the loss on a few validation rows
falls: theta + k d for the k before the first that does not help. The optimiser does not notice.

Where the released code differs: it measures no loss before the first addition and keeps the last one, which did not
help; and its rows are those of the test. Here they are validation rows, whose loss is then no longer that of rows that
training has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class FastForward(Part):
    """Repeats the last step as long as the loss on a few validation rows falls. Meant for low-rank updates."""

    name: ClassVar[str] = "fast-forward"
    kind: ClassVar[str] = "optimisation"
    paper: ClassVar[str] = "arXiv 2409.04206"
    equation: ClassVar[str] = "theta_t + k (theta_t - theta_(t-1)), the first k of least validation loss"
    evidence: ClassVar[str] = (
        "step lengths compared with the minima of parabolas; two errors of the released code are not reproduced"
    )
    slots: ClassVar[tuple[str, ...]] = ("steps",)
    conflicts: ClassVar[tuple[str, ...]] = ("restart",)
    requires: ClassVar[tuple[str, ...]] = ("delta", "validation")

    every: Annotated[float, Field(gt=0)] = 6.0
    """Steps between attempts, or a fraction of the run when below 1. 6 is the paper's."""
    after: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the run before the first attempt: the paper lets training settle, and does not say for how long."""
    most: Annotated[int, Field(ge=1)] = 100
    """Maximum repetitions of a step. The paper sets no limit."""

    @cached_property
    def before(self) -> dict[nn.Parameter, Tensor]:
        """Values before the step that is under way, where it may be repeated."""
        return {}

    def is_due(self, run: Run) -> bool:
        every = run.steps(self.every)
        return (run.step + 1) % every == 0 and run.step + 1 > self.after * run.total_steps

    def after_backward(self, run: Run) -> None:
        self.before.clear()  # those of a step that fp16 has skipped
        if self.is_due(run):
            self.before.update({p: p.detach().clone() for p in trained(run)})

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if not self.before:
            return
        start = {p: p.detach().clone() for p in self.before}
        change = {p: p - old for p, old in self.before.items()}
        self.before.clear()
        k, best = 0, loss_of(run)
        while k < self.most:
            move(start, change, k + 1)
            loss = loss_of(run)
            if not loss < best:
                break
            k, best = k + 1, loss
        move(start, change, k)


def move(start: dict[nn.Parameter, Tensor], change: dict[nn.Parameter, Tensor], k: int) -> None:
    for p, value in start.items():
        torch.add(value, change[p], alpha=k, out=p)


def trained(run: Run) -> list[nn.Parameter]:
    return [p for group in run.optimizer.param_groups for p in group["params"]]


def loss_of(run: Run) -> float:
    """The validation loss, the same on all processes."""
    loss = run.held_out()
    return float("nan") if loss is None else loss

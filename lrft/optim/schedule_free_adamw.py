"""Schedule-free AdamW of the package schedulefree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from lrft.optim.base import Optimizer
from lrft.optim.groups import on_gpu

# What the package counts for each group, at its start. Here it is part of the state of the group's tensors, so that
# whoever saves, copies or forgets their state does so with these.
COUNTS: dict[str, float] = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0}
TRAINED = "trained"
"""the entry of the state that keeps the point of training while the tensors are at their average"""


@dataclass(frozen=True)
class ScheduleFreeAdamW(Optimizer):
    """AdamW with an average of its iterates in the place of a schedule (Defazio et al., arXiv 2405.15682).

    Gradients are taken between the last iterate and the average. Evaluations, samples and saved adapters are of the
    average.
    """

    name: ClassVar[str] = "schedule-free-adamw"
    needs: ClassVar[str] = "schedulefree"
    averages: ClassVar[bool] = True
    schedules: ClassVar[tuple[str, ...]] = ("constant",)
    defaults: ClassVar[dict[str, Any]] = {"training.lr_scheduler": "constant"}
    rates: ClassVar[str] = "takes one to ten times that"

    betas: Annotated[
        tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
    ] = (0.9, 0.999)
    """How near to the average gradients are taken (1: at the average), and the decay of the running mean square."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    r: Annotated[float, Field(ge=0)] = 0.0
    """Step t has the weight t^r in the average."""
    weight_lr_power: Annotated[float, Field(ge=0)] = 2.0
    """And the largest learning rate so far to this power, which makes steps of a warm-up count little."""

    def make(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        from schedulefree import AdamWScheduleFree

        options: dict[str, Any] = {"r": self.r, "weight_lr_power": self.weight_lr_power, "foreach": on_gpu(groups)}
        made: torch.optim.Optimizer = AdamWScheduleFree(groups, betas=self.betas, eps=self.eps, **options)
        for group in made.param_groups:
            group["train_mode"] = True
        made.register_step_pre_hook(counts_of_state)
        made.register_step_post_hook(counts_to_state)
        return made

    @contextmanager
    def averaged(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """The package's way back to the point of training rounds, so that point is kept, bit for bit."""
        for group in optimizer.param_groups:
            for p in group["params"]:
                if optimizer.state.get(p):
                    optimizer.state[p][TRAINED] = p.detach().clone()
        optimizer.eval()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            with torch.no_grad():
                for group in optimizer.param_groups:
                    group["train_mode"] = True
                    for p in group["params"]:
                        if TRAINED in optimizer.state.get(p, {}):
                            p.copy_(optimizer.state[p].pop(TRAINED))


def counts_of_state(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Give each group the counts of its tensors, which are all the same; those of the start while none has a state."""
    for group in optimizer.param_groups:
        states = (optimizer.state.get(p) for p in group["params"])
        known = next((state for state in states if state), COUNTS)
        group.update({name: known[name] for name in COUNTS})


def counts_to_state(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Keep the counts of each group with its tensors."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if optimizer.state.get(p):
                optimizer.state[p].update({name: group[name] for name in COUNTS})

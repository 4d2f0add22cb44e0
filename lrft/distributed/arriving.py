"""Gradients that the optimiser takes as they arrive in the backward pass, so that one at a time is alive.

What looks at the gradients of a step together has none to look at: clipping by their norm, other parts, other
processes. The keys of a recipe that ask for that are refused by the declaration (`takes_gradients`,
`lrft.recipe.taken_gradients`); what needs the objects of the run is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lrft.adapters import compose
from lrft.adapters.attached import Attached
from lrft.adapters.compose import Composition
from lrft.adapters.gradients import TakesGradients
from lrft.adapters.part import Part
from lrft.distributed.strategy import Strategy
from lrft.errors import Problem, RecipeError
from lrft.recipe import Recipe

LOOKING = ("compose_gradient", "after_backward")
"""hooks that see the gradients of a step"""


def refuse(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError for what a run of `processes` cannot have beside gradients that are taken as they arrive."""
    composition = compose.compose_section(recipe.adapter)
    owner = composition.optimizer_owner
    if owner is None or not owner.gradients_taken:
        return
    text = f"adapter.method: {owner.name} takes gradients as they arrive"
    if processes > 1:
        refuse_for(recipe, f"{text}, before {processes} processes could exchange them: train in one process")
    if looking := looking_at_gradients(composition, owner):
        refuse_for(recipe, f"{text}, and {' and '.join(looking)} looks at all of a step: take one of them out")


def refuse_for(recipe: Recipe, text: str) -> None:
    raise RecipeError([Problem(recipe.where("adapter.method"), text)])


def looking_at_gradients(composition: Composition, owner: Part) -> list[str]:
    """Names of the parts that need the gradients of a step; of one that is made in the backward pass, also those whose
    terms of the loss have a backward pass of their own."""
    hooks = (*LOOKING, "loss") if owner.gradients_taken == "step" else LOOKING
    return [
        part.name
        for part in composition.parts
        if any(getattr(type(part), hook) is not getattr(Part, hook) for hook in hooks)
    ]


class Arriving(Strategy):
    """One process, whose optimiser takes each gradient at the end of the pass that has made it."""

    def __init__(self, accelerator: Any, model: nn.Module, optimizer: Any, attached: Attached) -> None:
        super().__init__(accelerator, model, optimizer, attached)
        self.taking: TakesGradients = optimizer.optimizer
        for p in attached.trained().values():
            p.register_post_accumulate_grad_hook(self.arrived)

    def arrived(self, p: Tensor) -> None:
        if p.grad is not None and self.taking.take(p, p.grad):
            p.grad = None

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Their norms, each as a tensor of one number: of that the norm is the same."""
        norms = self.taking.norms()
        return ((name, norms[p]) for name, p in self.attached.trained().items() if p in norms)

    def step(self, limit: float | None, clipped: Callable[[Tensor | float], None]) -> bool:
        clipped(math.sqrt(sum(float(norm) ** 2 for norm in self.taking.norms().values())))
        self.optimizer.step()
        return True

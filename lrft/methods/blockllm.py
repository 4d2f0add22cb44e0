"""BlockLLM. Ramesh et al., 2024, arXiv 2406.17296: Adam for the few layers whose gradients are largest.

    score of a layer = |G| / f,    f = (1 + times chosen) / (1 + choices made)

The layers of the highest scores are taken until they hold a share 1 - sparsity of all weights, the last one whole;
their moments begin anew with each choice, and the others stand still. The paper chooses again when the loss has stopped
falling, its code at most every 1000 steps; here it is every so many steps. In the released code the frequency hardly
counts (it divides by exp(f / step)), the first choice is random, and nothing of the choice is saved: not kept. It makes
the gradients of the chosen layers alone; here all are made, and what is saved is the memory of the moments.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.projected_adam import Grid, ProjectedAdam, Projecting


@dataclass(frozen=True)
class BlockLlm(Projecting):
    """Trains whole weights, of a few layers at a time: those with the largest gradients that were seldom chosen."""

    name: ClassVar[str] = "blockllm"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2406.17296"
    equation: ClassVar[str] = "AdamW of the layers with the largest |G| / f, f how often they were chosen"
    evidence: ClassVar[str] = (
        "layer selection and steps compared with the paper's rule and AdamW; the released code differs"
    )
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")
    may_not_move: ClassVar[tuple[str, ...]] = ("D",)

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Fraction of the weights that are not updated. 0 is AdamW. The recipe's rank is not used."""
    every: Annotated[float, Field(gt=0)] = 1000.0
    """Steps between selections, or a fraction of the run when below 1."""

    def grid(self) -> Grid:
        return Grid(projection="block", density=1 - self.sparsity, moments="reset")

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        return BlockAdam(groups, self.grid(), **given)


class BlockAdam(ProjectedAdam):
    """The state of each tensor counts in "visits" how often it was chosen."""

    chosen: tuple[int, set[str]] = (-1, set())

    def choose(self, name: str, number: int, state: dict[str, Tensor], G: Tensor, rank: int) -> None:
        super().choose(name, number, state, G, rank)
        state["visits"] = state.get("visits", torch.zeros(())) + float(len(state["columns"]) > 0)

    def active(self, number: int) -> set[str]:
        """Asked by each tensor in turn; all gradients of the step are at hand from the first one on."""
        if self.chosen[0] != number:
            self.chosen = number, self.highest(number)
        return self.chosen[1]

    def highest(self, number: int) -> set[str]:
        members = [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
        found = [(name, p) for name, p in members if p.grad is not None]
        visits = [int(self.state[p].get("visits", 0)) for _, p in found]
        norms = torch.stack([p.grad.norm() for _, p in found]).tolist()
        scores = [norm * (1 + number) / (1 + times) for norm, times in zip(norms, visits, strict=True)]
        left = self.grid.density * sum(p.numel() for _, p in found)
        taken: set[str] = set()
        for i in sorted(range(len(found)), key=lambda i: -scores[i]):
            if left > 1e-6 * found[i][1].numel() or not taken:
                taken.add(found[i][0])
                left -= found[i][1].numel()
        return taken

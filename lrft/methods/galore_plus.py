"""GaLore+, arXiv 2412.19820. A reconstruction from the abstract: neither code nor the whole text is known to us.

GaLore with randomized directions, and two changes. The heads of queries, keys and values share one projection, found
from the gradient of one head, G[j h : (j + 1) h] of h rows: from the next head each time. And of what the projection
leaves of the gradient, the entries that were largest in the first steps keep moments of their own:

    W <- W - lr factor (Adam(R) P + Adam(entries of G - R P)),    R = G P'

A layer with fewer outputs than inputs is projected on the side of its outputs, where heads share nothing: as in GaLore.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.projected_adam import Grid, ProjectedAdam, Projecting, down, up

WITH_HEADS = ("q_proj", "k_proj", "v_proj", "query", "key", "value")


@dataclass(frozen=True)
class GalorePlus(Projecting):
    """GaLore with directions from one attention head at a time, and single entries of what they leave out."""

    name: ClassVar[str] = "galore-plus"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2412.19820"
    equation: ClassVar[str] = "W <- W - lr factor (Adam(R) P + Adam(entries of G - R P)), P of one head's G"
    evidence: ClassVar[str] = "compared with GaLore when its changes are off; reconstructed from the abstract"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "three times full's best on a tiny task, as galore's"
    on: ClassVar[str] = "full"
    slots: ClassVar[tuple[str, ...]] = ("optimizer", "steps")
    requires: ClassVar[tuple[str, ...]] = ("dense",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "restart")

    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps between projection updates, or a fraction of the run when below 1. GaLore's default."""
    factor: Annotated[float, Field(gt=0)] = 0.25
    """Scaling factor of the step; GaLore's 0.25."""
    head_size: Annotated[int, Field(ge=0)] = 128
    """h, output width of one head. 0: heads are not separated."""
    entries: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of a layer's entries that keep moments of their own. Ours; 0: none."""
    warmup: Annotated[int, Field(ge=1)] = 20
    """Steps in which the rest is added up, entry by entry, before the entries are chosen for good. Ours."""

    def grid(self) -> Grid:
        return Grid(projection="randomized", scale=self.factor)

    def optimizer(self, groups: list[dict[str, Any]], **given: Any) -> ProjectedAdam:
        return CrossHeadAdam(self, groups, **given)

    def optimizer_numbers(self, d: int, k: int, rank: int) -> int:
        # Indices take two numbers each. In the first steps it is a number for each entry instead.
        return super().optimizer_numbers(d, k, rank) + max(round(4 * self.entries * d * k), d * k * (self.entries > 0))


class CrossHeadAdam(ProjectedAdam):
    def __init__(self, part: GalorePlus, groups: list[dict[str, Any]], **given: Any) -> None:
        super().__init__(groups, part.grid(), **given)
        self.part = part
        members = [pair for g in self.param_groups for pair in zip(g["param_names"], g["params"], strict=True)]
        words = {name: name.split(".")[-2] for name, _ in members}
        self.shared = {name for name, p in members if words[name] in WITH_HEADS and p.shape[0] >= p.shape[1]}

    def choose(self, name: str, number: int, state: dict[str, Tensor], G: Tensor, rank: int) -> None:
        """From the head `number`, counted round; from as many as the rank needs where that is more than a head has."""
        size = self.part.head_size
        if name in self.shared and size:
            rows = max(1, math.ceil(rank / size)) * size
            G = G.roll(-(number * size % len(G)), dims=0)[:rows]
        generator = torch.Generator().manual_seed(self.seed_of(name, number))
        with torch.random.fork_rng(devices=[G.device] if G.is_cuda else []):
            torch.manual_seed(generator.initial_seed())
            state["P"] = self.broadcast(svd.leading(G, rank)[2].T.contiguous())

    def change(self, state: dict[str, Tensor], G: Tensor) -> Tensor:
        change = super().change(state, G)
        if self.part.entries:
            rest = (G - up(state, down(state, G), G)).reshape(-1)
            if "entries" not in state:
                self.context(state, rest)
            else:
                change.view(-1).index_add_(0, state["entries"], self.of_entries(state, rest[state["entries"]]))
        return change

    def context(self, state: dict[str, Tensor], rest: Tensor) -> None:
        """Add up |rest|, and choose the entries at the end of the warm-up."""
        state["seen"] = rest.abs() + state.get("seen", 0.0)
        if int(state["step"]) >= self.part.warmup:
            count = max(1, round(self.part.entries * len(rest)))
            entries = state.pop("seen").topk(count).indices.sort().values
            state["entries"] = self.broadcast(entries)
            state.update(
                entry_avg=rest.new_zeros(count), entry_avg_sq=rest.new_zeros(count), entry_count=torch.zeros(())
            )

    def of_entries(self, state: dict[str, Tensor], values: Tensor) -> Tensor:
        """Adam's answer to the entries' values (count,), as large as the projected part's."""
        first, second = self.betas
        count = int(state["entry_count"].add_(1))
        state["entry_avg"].lerp_(values, 1 - first)
        state["entry_avg_sq"].lerp_(values.square(), 1 - second)
        bias = math.sqrt(1 - second**count) / (1 - first**count)
        return self.grid.scale * bias * state["entry_avg"] / (state["entry_avg_sq"].sqrt() + self.eps)

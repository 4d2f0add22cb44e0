"""ElaLoRA. Chang et al., 2025, arXiv 2504.00254.

The released training loops lose the optimiser's state, or the replaced tensors, at every adjustment; here everything
else stays as it is. A new gate is 0 instead of 1e-13, and a new direction is orthogonal to the present ones whatever
their length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import cycle
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair, asked, built, smoothed
from lrft.adapters.part import Method, Run
from lrft.model.send import send
from lrft.utils.seeds import seed_of

STD = 0.02


@dataclass(frozen=True)
class Elalora(Method):
    """Components move from layers where they matter least to layers where they matter most; their number stays."""

    name: ClassVar[str] = "elalora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2504.00254"
    equation: ClassVar[str] = "W + (alpha / r) B diag(g) A; components with a low score make room for others elsewhere"
    parameters: ClassVar[str] = "r' (d + k + 1), r' = over * rank; r (d + k + 1) at a time"
    exports: ClassVar[str] = "PEFT LoRA of the active components, or merged model"
    evidence: ClassVar[str] = "scores, schedule and reallocation compared with the formulas of the released code"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "as adalora, whose form it has; the released scripts have 5e-4 and 1.2e-3"
    edits_moments: ClassVar[bool] = True
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    over: Annotated[float, Field(ge=1)] = 2.0
    """Maximum rank of a layer relative to the recipe's rank, which is the mean rank throughout; chosen by lrft."""
    moves: Annotated[int, Field(ge=0)] = 4
    """Components moved at the first adjustment, 4 in the scripts; their number falls to 0 by a cubic curve."""
    candidates: Annotated[int, Field(ge=1)] = 2
    """Components that a layer can give up at each adjustment, 2 in the code. At least one remains."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the run before the first adjustment: 300 to 500 steps in the scripts."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Fraction of the run after which ranks are fixed: all but 500 to 1000 steps in the scripts."""
    interval: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Fraction of the run between adjustments: 50 to 500 steps in the scripts."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """Smoothed sensitivities, in the shapes of their tensors."""
        return {}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        """A component that is not in use is zero in A, B and gate: it then has no gradient and stays zero."""
        adapter, used = GatedPair(site, trains_gate=True), asked(site.rank, self.over)
        with torch.no_grad():
            adapter.A[:used].normal_(std=STD)
            adapter.B[:, :used].normal_(std=STD)
        return adapter

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        first, last, done = int(self.begin * run.total_steps), self.end * run.total_steps, run.step + 1
        if done >= last:
            return
        scores = {site: self.score(site, adapter.tensors()) for site, adapter in run.adapters.items()}
        if done > first and (done - first) % max(1, round(self.interval * run.total_steps)) == 0:
            self.adjust(run, scores, round(self.moves * (1 - ((done - first) / (last - first)) ** 3)))

    def score(self, site: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """Smoothed sensitivity (r,) of the components: that of the gate and the means over its row and column."""
        S = {
            word: smoothed(self.memory, f"{site}.{word}", (p * p.grad).abs())
            for word, p in tensors.items()
            if p.grad is not None
        }
        return S["gate"] + S["A"].mean(dim=1) + S["B"].mean(dim=0)

    def adjust(self, run: Run, scores: Mapping[str, Tensor], moves: int) -> None:
        """Take out the `moves` components that matter least; give one to the layer of each that matters most."""
        offered: list[tuple[float, str, int]] = []
        state = read({site: torch.stack([scores[site], p.any(dim=1)]) for site, p in rows_in(run).items()})
        used = {site: [slot for slot, drawn in enumerate(mask) if drawn] for site, (_, mask) in state.items()}
        for site, (found, _) in state.items():
            order = sorted(used[site], key=found.__getitem__)
            offered += [(found[slot], site, slot) for slot in order[: min(self.candidates, len(order) - 1)]]
        offered.sort(key=lambda one: one[0])
        left = 0
        for _, site, slot in offered[:moves]:
            for row in self.rows(run, site, slot):
                row.zero_()
            used[site].remove(slot)
            left += 1
        givers = cycle(reversed(offered))
        while left:
            _, site, _ = next(givers)
            left -= self.grow(run, site, used[site])

    def grow(self, run: Run, site: str, used: list[int]) -> bool:
        """Start a component in a free place of the layer, if there is one beside those in use."""
        tensors = run.adapters[site].tensors()
        free = [slot for slot in range(len(tensors["A"])) if slot not in used]
        if free:
            generator = torch.Generator().manual_seed(seed_of(run.seed, self.name, run.step, site, free[0]))
            for rows in (tensors["A"], tensors["B"].T):
                rows[free[0]] = new_direction(torch.stack([rows[slot] for slot in sorted(used)]), generator)
            used.append(free[0])
        return bool(free)

    def rows(self, run: Run, site: str, slot: int) -> Iterator[Tensor]:
        """Everything that belongs to one component: its numbers, their moments and their sensitivities."""
        tensors = run.adapters[site].tensors()
        for word in ("A", "gate", "B"):  # not those of wrappers
            p = tensors[word]
            moments = [m for m in run.optimizer.state.get(p, {}).values() if m.shape == p.shape]
            smooth = [self.memory[f"{kind}/{site}.{word}"] for kind in ("mean", "spread")]
            for tensor in (p, *moments, *smooth):
                yield tensor[:, slot] if word == "B" else tensor[slot]

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.update({name: tensor.clone() for name, tensor in state.items()})


def rows_in(run: Run) -> dict[str, Tensor]:
    """A (r, k) of each layer: a row that is zero is not in use."""
    return {site: adapter.tensors()["A"] for site, adapter in run.adapters.items()}


def read(figures: Mapping[str, Tensor]) -> dict[str, list[list[float]]]:
    """Tensors (2, n) as lists, n as it comes, read at once: each read makes a GPU wait."""
    values = torch.cat(list(figures.values()), dim=1).tolist()
    ends = torch.tensor([0, *(figure.shape[1] for figure in figures.values())]).cumsum(0).tolist()
    return {site: [row[ends[n] : ends[n + 1]] for row in values] for n, site in enumerate(figures)}


def new_direction(rows: Tensor, generator: torch.Generator) -> Tensor:
    """A random vector of length one, orthogonal to `rows` (n, m) where there is room for it."""
    v = send(torch.randn(rows.shape[1], generator=generator).to(rows.dtype), rows.device)
    if 0 < len(rows) < len(v):
        Q = torch.linalg.qr(rows.T).Q
        v = v - Q @ (Q.T @ v)
    return v / v.norm()

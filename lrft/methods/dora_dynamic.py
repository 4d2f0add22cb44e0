"""DoRA, dynamic rank distribution. Mao et al., 2024, arXiv 2405.17357. (Not dora, which decomposes the weight.)

    score of component i = average over the steps of |g_i| |b_i| |a_i| / |B diag(g) A|

b_i a column of B, a_i a row of A, all norms Frobenius. The released code makes every component a matrix of the weight's
size for this; the norm below the line follows from two (r, r) products. It takes away one component before any is due,
and two or more of equal score together; here it is always as many as are due.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair, asked, built
from lrft.adapters.part import Method, Run

EPS = 1e-8


@dataclass(frozen=True)
class DoraDynamic(Method):
    """Starts with more components than asked for and takes away those with the smallest share of the update."""

    name: ClassVar[str] = "dora-dynamic"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2405.17357"
    equation: ClassVar[str] = "W + (alpha / r0) B diag(g) A; g = 0 where |g_i b_i a_i| / |B diag(g) A| is low"
    parameters: ClassVar[str] = "r0 (d + k + 1), r0 = over * rank"
    exports: ClassVar[str] = "PEFT LoRA of the components that are left, or merged"
    evidence: ClassVar[str] = "scores, penalty and components taken away in a run against the released code"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "ours: the released script has 1e-4 to 2.2e-4 for RoBERTa"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    over: Annotated[float, Field(ge=1)] = 1.5
    """Components built over the recipe's rank, which is the average rank at the end. The authors: 1.5."""
    initial: Annotated[float, Field(ge=0, le=0.5)] = 0.15
    """Share of the run before the first component is taken away. The authors: 0.15."""
    final: Annotated[float, Field(ge=0, le=0.5)] = 0.5
    """Share of the run at its end in which the components stay as they are. The authors: 0.5."""
    every: Annotated[float, Field(gt=0)] = 0.01
    """Steps between two decisions, or a share of the run when below 1. The released script: 100 steps."""
    beta: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the moving average of the scores."""
    spread: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the penalty: the mean variance inside rows of A and columns of B, until the components stay."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """score/SITE (r,), and gone/SITE (r,) once the components stay."""
        return {}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / built(rank, self.over)

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        adapter = GatedPair(site, trains_gate=True)
        nn.init.kaiming_uniform_(adapter.A)
        nn.init.kaiming_uniform_(adapter.B)
        return adapter

    def phases(self, total: int) -> tuple[int, int]:
        """The steps, counted from 1, of the first decision and of the last one."""
        first = math.ceil(self.initial * total)
        return first, first + int(total * (1 - self.initial - self.final))

    def loss(self, run: Run) -> Tensor | None:
        if not self.spread or run.step + 1 > self.phases(run.total_steps)[1]:
            return None
        pairs = [adapter.tensors() for adapter in run.adapters.values()]
        variances = [v for t in pairs for v in (t["A"].var(dim=1), t["B"].var(dim=0))]
        return self.spread * torch.cat(variances).mean()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        done = run.step + 1
        first, last = self.phases(run.total_steps)
        gates = {site: adapter.tensors()["gate"] for site, adapter in run.adapters.items()}
        if done <= last:
            for site, adapter in run.adapters.items():
                now = shares(adapter.tensors())
                before = self.memory.get(f"score/{site}", torch.zeros_like(now))
                self.memory[f"score/{site}"] = before.to(now.device).lerp(now, 1 - self.beta)
            if done == last or (done >= first and (done - first) % run.steps(self.every) == 0):
                self.choose(gates, 1.0 if last == first else (done - first) / (last - first))
        for site, gate in gates.items():
            if f"gone/{site}" in self.memory:
                gate.masked_fill_(self.memory[f"gone/{site}"].to(gate.device), 0)
                if done < last:  # until then a component may come back
                    del self.memory[f"gone/{site}"]

    def choose(self, gates: Mapping[str, Tensor], progress: float) -> None:
        """Mark, over all layers, the components of the lowest scores: as many as are due at `progress`, 0 to 1."""
        ranks = [len(gate) for gate in gates.values()]
        surplus = sum(ranks) - sum(asked(rank, self.over) for rank in ranks)
        scores = torch.cat([self.memory[f"score/{site}"] for site in gates])
        gone = torch.zeros_like(scores, dtype=torch.bool)
        gone[scores.argsort(stable=True)[: int(surplus * progress**3)]] = True
        self.memory.update({f"gone/{site}": mine for site, mine in zip(gates, gone.split(ranks), strict=True)})

    def state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.memory.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.clear()
        self.memory.update({name: tensor.clone() for name, tensor in state.items()})


def shares(tensors: Mapping[str, Tensor]) -> Tensor:
    """|g_i b_i a_i| / |B diag(g) A| (r,) of A (r, k), gate g (r,) and B (d, r)."""
    A, B = tensors["gate"][:, None] * tensors["A"], tensors["B"]
    whole = ((B.T @ B) * (A @ A.T)).sum().clamp_min(0).sqrt()
    return A.norm(dim=1) * B.norm(dim=0) / (whole + EPS)

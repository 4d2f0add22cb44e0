"""RoseLoRA. Wang et al., 2024, arXiv 2406.10777. Read in a copy of the authors' code for knowledge editing.

There the schedule counts steps (3 to 20) and entries are clamped at 0.02; here both are options, as fractions of the
run and off. The sparse factors are those of an update that starts at zero, so it shares no run with another start.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.part import Part, Run

MEMORY = 0.8


@dataclass(frozen=True)
class Roselora(Part):
    """Keeps the few most sensitive entries in each column of B and each row of A: dW touches few weights."""

    name: ClassVar[str] = "roselora"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2406.10777"
    equation: ClassVar[str] = (
        "M <- 0.8 M + 0.2 |p grad p|; p = 0 where M is below the (1 - q) quantile of its row/column"
    )
    evidence: ClassVar[str] = "masks compared entry by entry with the released rule, in plain Python"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: 3 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("entries",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("init",)

    keep: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Final fraction of nonzero entries; 0.05 is that of the editing experiments."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the run before pruning starts."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Share of the run after which `keep` holds; between, the share kept falls by a cubic curve."""
    limit: Annotated[float, Field(gt=0)] | None = None
    """Largest size of an entry, 0.02 in the editing experiments."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """M by tensor."""
        return {}

    @cached_property
    def fresh(self) -> dict[str, Tensor]:
        """|p grad p| of this step: counted only if the step is made."""
        return {}

    def share(self, step: int, total: int) -> float:
        """q(t) with t = `step` steps done before."""
        done = (step - self.begin * total) / max((self.end - self.begin) * total, 1e-9)
        return self.keep + (1 - self.keep) * (1 - min(max(done, 0.0), 1.0)) ** 3

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for name, p, _ in factors(run):
            if p.grad is not None:
                self.fresh[name] = (p * p.grad).abs()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        q = self.share(run.step, run.total_steps)
        for name, p, axis in factors(run):
            S = self.fresh.pop(name)
            M = self.memory.get(name, S).to(S.device).lerp(S, 1 - MEMORY)
            self.memory[name] = M
            k = math.floor(round(p.shape[axis] * (1 - q), 9))
            if k:
                p.masked_fill_(M.kthvalue(k, axis, keepdim=True).values > M, 0.0)
            if self.limit is not None:
                p.clamp_(-self.limit, self.limit)

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.update({name: M.clone() for name, M in state.items()})


def factors(run: Run) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, factor, the axis along which entries compete): A (r, k) by row, B (d, r) by column."""
    for site, adapter in run.adapters.items():
        tensors = adapter.tensors()
        yield f"{site}.A", tensors["A"], 1
        yield f"{site}.B", tensors["B"], 0

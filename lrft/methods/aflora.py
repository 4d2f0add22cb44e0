"""AFLoRA. Liu et al., 2024, arXiv 2403.13269. The authors' code was not published: starts and ranking are ours.

A frozen tensor takes no part in the optimiser's step and loses its moments; its gradient is still made, because a
distributed wrapper expects it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.gated import smoothed
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class Aflora(Method):
    """Two thin matrices that are frozen one by one, those with the calmest gradient first, between trained vectors."""

    name: ClassVar[str] = "aflora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2403.13269"
    equation: ClassVar[str] = "W + diag(b) B diag(d) A"
    parameters: ClassVar[str] = "r (d + k) + r + d, at the end r + d"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "dense reference of the paper's formulas"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: 10 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    start_d: Annotated[float, Field(gt=0)] = 0.1
    """Initial value of the vector d; 0.1 as in VeRA."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Fraction of the run before the first matrix is frozen; default chosen by lrft."""
    end: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Fraction of the run after which all matrices are frozen; default chosen by lrft."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """Smoothed gradients of matrices that train, and a mark for each that does not."""
        return {}

    def build(self, site: Site) -> Delta:
        return AfloraAdapter(site, self.start_d)

    def training(self, done: int, total: int) -> float:
        """Share of the matrices that train after `done` steps. All must have moved first: the start takes two steps."""
        first = max(2.0, self.begin * total)
        progress = (done - first) / max(self.end * total - first, 1e-9)
        return float((1 - min(max(progress, 0.0), 1.0)) ** 3)

    def after_backward(self, run: Run) -> None:
        for name, p in matrices(run).items():
            if f"frozen/{name}" in self.memory:
                p.grad = None  # neither momentum nor weight decay moves what has no gradient

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        found = matrices(run)
        alive = {name: p for name, p in found.items() if f"frozen/{name}" not in self.memory}
        scores = {
            name: smoothed(self.memory, name, p.grad.abs()).mean() for name, p in alive.items() if p.grad is not None
        }
        most = math.ceil(round(len(found) * self.training(run.step + 1, run.total_steps), 9))
        if len(alive) > most:
            values = dict(zip(scores, torch.stack(list(scores.values())).tolist(), strict=True))
            for name in sorted(values, key=values.__getitem__)[: len(alive) - most]:
                del self.memory[f"mean/{name}"], self.memory[f"spread/{name}"]
                self.memory[f"frozen/{name}"] = torch.ones(1, dtype=torch.uint8)
                run.optimizer.state.pop(found[name], None)

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.update({name: tensor.clone() for name, tensor in state.items()})


def matrices(run: Run) -> dict[str, nn.Parameter]:
    return {f"{site}.{word}": adapter.tensors()[word] for site, adapter in run.adapters.items() for word in ("A", "B")}


class AfloraAdapter(Delta):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) in +-1/sqrt(r); v_d (r,) constant, v_b (d,) zero."""

    def __init__(self, site: Site, start_d: float) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.empty(site.d, site.rank, dtype=site.dtype))
        self.v_d = nn.Parameter(torch.full((site.rank,), start_d, dtype=site.dtype))
        self.v_b = nn.Parameter(torch.zeros(site.d, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))

    def delta_weight(self) -> Tensor:
        return self.v_b[:, None] * (self.B * self.v_d) @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.A) * self.v_d, self.B) * self.v_b

    def factors(self) -> Factors:
        return Factors(self.v_b[:, None] * self.B * self.v_d, self.A, 1.0)

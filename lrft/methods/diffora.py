"""DiffoRA. Jiang et al., 2025, arXiv 2502.08905. No code is published: phases, their lengths and the start are ours.

    search:    W + sigmoid(z) s B A,    z one number for each layer
    after it:  W + s B A for the share of each block's layers with the largest z, the other layers as they were

The paper trains z on rows that A and B do not see. Here every third step of the search trains z alone and the others
A and B alone, so within an epoch no row serves both. What is not chosen keeps its tensors, of which nothing is used any
more: shapes do not change during a run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run
from lrft.adapters.resting import held, put_back

PERIOD = 3


@dataclass(frozen=True)
class Diffora(Method):
    """Trains a gate for each layer's adapter first, and then the adapters with the widest gates alone."""

    name: ClassVar[str] = "diffora"
    kind: ClassVar[str] = "placement"
    paper: ClassVar[str] = "arXiv 2502.08905"
    equation: ClassVar[str] = "W + sigmoid(z) (alpha / r) B A, then 1 for the largest z of each block and 0 for others"
    parameters: ClassVar[str] = "r (d + k) + 1, after the search r (d + k) in a share of the layers"
    exports: ClassVar[str] = "PEFT LoRA, zero where no adapter was left, or merged"
    evidence: ClassVar[str] = "a reconstruction from the paper"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as lora, whose form it has"
    slots: ClassVar[tuple[str, ...]] = ("update", "placement")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    may_not_move: ClassVar[tuple[str, ...]] = ("z",)

    keep: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each block's layers that keep their adapter, one at least; ours."""
    search: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the run in which the gates are trained; ours."""
    ratio: Annotated[float, Field(gt=0)] = 50.0
    """Learning rate of z over that of A and B; ours."""
    keep_weights: bool = False
    """Keep what A and B have learnt in the search; they start anew otherwise."""

    @cached_property
    def resting(self) -> dict[str, Any]:
        """Inside one step: the tensors that it does not train, as they were."""
        return {"held": []}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def lr_factors(self) -> dict[str, float]:
        return {"z": self.ratio}

    def build(self, site: Site) -> Delta:
        return DifforaAdapter(site)

    def searched(self, run: Run) -> int:
        """Steps of the search: those of A and B come first, and those of z are among them."""
        return max(PERIOD, round(self.search * run.total_steps))

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        if run.step == self.searched(run):
            z = {site: adapter.tensors()["z"].item() for site, adapter in run.adapters.items()}
            chosen = largest({a.site.name: a.site.depth for a in run.adapters.values()}, z, self.keep)
            for site, adapter in run.adapters.items():
                self.settle(run, adapter.tensors(), adapter.site, kept=site in chosen)

    def settle(self, run: Run, tensors: Mapping[str, Tensor], site: Site, *, kept: bool) -> None:
        tensors["settled"].fill_(1.0 if kept else -1.0)
        if not self.keep_weights:
            fresh = run.fresh(site, 1).tensors()
            for word in ("A", "B"):
                tensors[word].copy_(fresh[word])
                run.forget(tensors[word])

    def after_backward(self, run: Run) -> None:
        if run.step < self.searched(run):
            resting = ("A", "B") if run.step % PERIOD == PERIOD - 1 else ("z",)
            own = [adapter.tensors() for adapter in run.adapters.values()]
            self.resting["held"] = held(run, (tensors[word] for tensors in own for word in resting))

    def after_step(self, run: Run) -> None:
        put_back(run, self.resting["held"])
        self.resting["held"] = []


def largest(depths: Mapping[str, int | None], z: Mapping[str, float], keep: float) -> set[str]:
    """The sites of the largest z: a share `keep` of each depth's, one at least; of equal ones those first by name."""
    chosen: set[str] = set()
    for depth in set(depths.values()):
        inside = sorted((site for site in depths if depths[site] == depth), key=lambda site: (-z[site], site))
        chosen.update(inside[: max(1, round(keep * len(inside)))])
    return chosen


class DifforaAdapter(Delta):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) zero, z () zero; `settled` () is 0, 1 if kept, -1 if not."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.z = nn.Parameter(torch.zeros((), dtype=site.dtype))
        self.settled = nn.Parameter(torch.zeros((), dtype=site.dtype), requires_grad=False)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def gate(self) -> Tensor:
        return torch.where(self.settled == 0, self.z.sigmoid(), self.settled.clamp_min(0))

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.gate() * self.B @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * self.gate() * linear(linear(x, self.A), self.B)

    def factors(self) -> Factors:
        return Factors(self.gate() * self.B, self.A, self.site.scale)

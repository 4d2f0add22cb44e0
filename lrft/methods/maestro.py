"""Maestro. Horvath et al., 2023, arXiv 2308.14929, for an adapter: a reconstruction. The paper factorises the weight.

In each step one layer, drawn anew, uses its first b components only, b drawn from 1 to its rank, so that components are
ordered by what they are worth. The penalty is strength times, over all layers and i, |B[:, i:]| + |A[i:]| (Frobenius):
the later a component, the more it is counted. Where the product |B[:, i:]| |A[i:]| has become small, components from i
on are shut. That is decided only once B, zero at the start, has learnt; the released code decides at every epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.gated import GatedPair
from lrft.adapters.part import Method, Run
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Maestro(Method):
    """Orders the components of each layer by what they are worth, and drops the last ones."""

    name: ClassVar[str] = "maestro"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2308.14929"
    equation: ClassVar[str] = "W + (alpha / r) B diag(g) A; loss + c sum_i (|B[:, i:]| + |A[i:]|)"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of the components that are left, or merged"
    evidence: ClassVar[str] = "penalty and importance against the released code; on an adapter a reconstruction"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as lora, whose form and start it has"
    # Not "delta": in training what is added changes with the draw, no tensor tells.
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("scale",)

    strength: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the penalty, c. The released scripts have 1e-6 and more, its default is 5e-3."""
    threshold: Annotated[float, Field(ge=0)] = 1e-5
    """Importance |B[:, i:]| |A[i:]| below which components from i on are shut. The released default."""
    begin: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the run before the first component is shut; ours."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        adapter = NestedPair(site)
        nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
        nn.init.ones_(adapter.gate)
        return adapter

    def before_step(self, run: Run) -> None:
        generator = torch.Generator().manual_seed(seed_of(run.seed, self.name, run.step))
        adapters = list(run.adapters.values())
        chosen = int(torch.randint(len(adapters), (), generator=generator))
        first = int(torch.randint(adapters[chosen].site.rank, (), generator=generator)) + 1
        for number, adapter in enumerate(adapters):
            nested(adapter).open = first if number == chosen else adapter.site.rank

    def loss(self, run: Run) -> Tensor | None:
        if not self.strength:
            return None
        sums = [tails(t["A"]).sum() + tails(t["B"].T).sum() for t in (a.tensors() for a in run.adapters.values())]
        return self.strength * torch.stack(sums).sum()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if run.step + 1 < self.begin * run.total_steps:
            return
        for adapter in run.adapters.values():
            tensors = adapter.tensors()
            importance = tails(tensors["A"]) * tails(tensors["B"].T)
            tensors["gate"].masked_fill_(importance < self.threshold, 0)


class NestedPair(GatedPair):
    """`open` components, of those that are not shut, are used in training mode."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, trains_gate=False)
        self.open = site.rank
        self.eval()  # a model that is only used never calls eval()

    def factors(self) -> Factors:
        B, A, scale = super().factors()
        if not self.training:
            return Factors(B, A, scale)
        used = torch.arange(self.site.rank, device=B.device) < self.open
        return Factors(B * used, A, scale)

    def delta(self, x: Tensor) -> Tensor:
        B, A, scale = self.factors()
        return scale * linear(linear(x, A), B)


def nested(adapter: nn.Module) -> NestedPair:
    return next(module for module in adapter.modules() if isinstance(module, NestedPair))


def tails(rows: Tensor) -> Tensor:
    """|rows[i:]| for each i (r,), for rows (r, n). Where it is zero, so is its gradient."""
    squares = rows.square().sum(dim=1).flip(0).cumsum(0).flip(0)
    positive = squares > 0
    return torch.where(positive, torch.where(positive, squares, 1.0).sqrt(), 0.0)

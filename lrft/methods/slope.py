"""SLoPe's lazy adapters. Mozaffari et al., 2024, arXiv 2405.16325: a pair of thin matrices for the last steps of a run.

    dW + gate / r B A,    gate 0, and 1 for the last share of the run; B zero, A from N(0, 1) drawn when it opens

beside whatever else trains dW: whole weights unless the recipe names another method, as in the paper, where they train
2:4 sparse weights and the adapters win back what sparsity loses. Its sparse training, which is for pretraining and
needs kernels of its own, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Delta, Factors
from lrft.adapters.part import Part, Run
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Slope(Part):
    """Adds a pair of thin matrices to what is trained, for the last steps of the run only."""

    name: ClassVar[str] = "slope"
    kind: ClassVar[str] = "schedule"
    paper: ClassVar[str] = "arXiv 2405.16325"
    equation: ClassVar[str] = "dW + B A / r in the last 1 % of the steps, dW alone before"
    parameters: ClassVar[str] = "those of the method and r (d + k)"
    evidence: ClassVar[str] = "schedule compared with the released code; only its lazy adapters are included"
    on: ClassVar[str] = "full"
    requires: ClassVar[tuple[str, ...]] = ("delta",)
    conflicts: ClassVar[tuple[str, ...]] = ("optimizer", "magnitude", "forward")
    may_not_move: ClassVar[tuple[str, ...]] = ("lazy_A", "lazy_B")

    share: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Share of the run, one step at least, in which the pair is trained. The authors' 1 %."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{adapter.site.name}: slope requires an additive update")
        return Lazy(adapter)

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        if run.step < run.total_steps - max(1, round(self.share * run.total_steps)):
            return
        for name, adapter in run.adapters.items():
            for module in adapter.modules():
                if isinstance(module, Lazy) and not module.gate:
                    module.open(seed_of(run.seed, self.name, name))
                    for p in (module.lazy_A, module.lazy_B) if run.optimizer else ():
                        run.forget(p)


class Lazy(Delta):
    """`inner` and a pair lazy_A (r, k), lazy_B (d, r), zero until the gate opens."""

    def __init__(self, inner: Delta) -> None:
        super().__init__(inner.site)
        site = inner.site
        self.inner = inner
        self.lazy_A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype))
        self.lazy_B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.gate = nn.Parameter(torch.zeros((), dtype=site.dtype), requires_grad=False)

    def open(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lazy_A.copy_(torch.randn(self.lazy_A.shape, generator=generator, dtype=self.lazy_A.dtype))
        self.gate.fill_(1)

    def delta_weight(self) -> Tensor:
        return self.inner.delta_weight() + self.gate / self.site.rank * (self.lazy_B @ self.lazy_A)

    def delta(self, x: Tensor) -> Tensor:
        return self.inner.delta(x) + self.gate / self.site.rank * linear(linear(x, self.lazy_A), self.lazy_B)

    def factors(self) -> Factors | None:
        inner = self.inner.factors()
        if inner is None:
            return None
        B = torch.cat([inner.scale * inner.B, self.gate / self.site.rank * self.lazy_B], dim=1)
        return Factors(B, torch.cat([inner.A, self.lazy_A]), 1.0)

"""SingLoRA. Bensaïd et al., 2025, arXiv 2507.05566. No code of the authors is known.

    dW = s u A[:d] A[:k]',    A (max(d, k), r),    u = min(t / T, 1) at optimiser step t = 1, 2, ...

A square update is symmetric and has no negative eigenvalue: it can add along a direction, never take away. The paper
gives a rectangular layer the leading rows of one A; only its leading square is so constrained.
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
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class Singlora(Method):
    """One thin matrix times its own transpose, for about half of LoRA's numbers; a square update cannot subtract."""

    name: ClassVar[str] = "singlora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2507.05566"
    equation: ClassVar[str] = "W + (alpha / r) u A[:d] A[:k]', u from 0 to 1"
    parameters: ClassVar[str] = "r max(d, k)"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "dense reference of the paper's formula; the init scale is chosen by lrft"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    ramp: Annotated[float, Field(gt=0)] = 0.1
    """T, the steps until the update has its full factor: up to 1 a share of the run, above 1 a number of steps. The
    paper leaves T open; the default is ours."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return SingloraAdapter(site)

    @property
    def acts_between_passes(self) -> bool:
        return False  # the ramp is a factor that nobody trains

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        steps = self.ramp * run.total_steps if self.ramp <= 1 else self.ramp
        reached = min((run.step + 1) / steps, 1.0)
        for adapter in run.adapters.values():
            for module in adapter.modules():
                if isinstance(module, SingloraAdapter):
                    module.ramp.fill_(reached)


class SingloraAdapter(Delta):
    """A (D, r), D = max(d, k), uniform in +-1/sqrt(D): Kaiming's rule with a = sqrt(5) for A', as LoRA's. ramp is u.

    The paper names the rule for A itself. Its fan would be r, and the update at full factor 2/3 on the diagonal of each
    square layer before anything is learned: more than most weights hold. Short runs do not come back from it.
    """

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(max(site.d, site.k), site.rank, dtype=site.dtype))
        # Not of no dimensions: DeepSpeed cannot send such a tensor to others.
        self.ramp = nn.Parameter(torch.zeros(1, dtype=site.dtype), requires_grad=False)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5), mode="fan_out")

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.ramp * self.A[: self.site.d] @ self.A[: self.site.k].T

    def delta(self, x: Tensor) -> Tensor:
        thin = linear(x, self.A[: self.site.k].T)
        return self.site.scale * linear(thin, self.ramp * self.A[: self.site.d])

    def factors(self) -> Factors:
        return Factors(self.ramp * self.A[: self.site.d], self.A[: self.site.k].T, self.site.scale)

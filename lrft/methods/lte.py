"""LTE, LoRA-the-explorer. Huh et al., 2024, arXiv 2402.16828: LoRAs that learn apart and are merged now and then.

    a head in training:  W + s mean_j B'_j A'_j + s (B_h A_h - B'_h A'_h),    ' as at the last merge
    a merge:             B'_j A'_j = B_j A_j for all heads j; none of them is reset
    the adapter:         W + s mean_j B_j A_j

The paper trains the heads side by side, each with its part of the batch; here they take turns, each with a whole batch,
while the others rest with their moments, which is the same but for the time that it takes. The base is not written to:
the merges telescope into the mean. So the adapter is at any time what a merge would make of it just then; that of the
released code changes at merges only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, PeftForm, Site
from lrft.adapters.part import Method, Run
from lrft.adapters.resting import held, put_back


@dataclass(frozen=True)
class Lte(Method):
    """Several LoRAs that learn in turn, each beside the mean of the others as it was at the last merge."""

    name: ClassVar[str] = "lte"
    kind: ClassVar[str] = "restart"
    paper: ClassVar[str] = "arXiv 2402.16828"
    equation: ClassVar[str] = "W + (alpha / r) mean_h B_h A_h, each head trained apart between merges"
    parameters: ClassVar[str] = "heads r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank heads * r, or merged"
    evidence: ClassVar[str] = "every head's output and the merged weights of a run against the released code"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "ours: 2.5 times lora's, for a mean of four of which one learns at a time"
    # Not "delta": in training each head adds something else, no tensor tells which.
    slots: ClassVar[tuple[str, ...]] = ("update", "restart")
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    may_not_move: ClassVar[tuple[str, ...]] = ("A", "B")

    heads: Annotated[int, Field(ge=1)] = 4
    """How many LoRAs, each of the recipe's rank. The authors, from scratch: 32 of rank 32."""
    merge: Annotated[int, Field(ge=1)] = 10
    """Steps of each head from one merge to the next."""
    init: Literal["lora", "orthogonal"] = "lora"
    """Init of A. orthogonal: as released, rows of length sqrt(k / r), which want a far lower learning rate."""

    @cached_property
    def resting(self) -> dict[str, Any]:
        """Inside one step: the heads whose turn it is not, as they were."""
        return {"held": []}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        return LteAdapter(site, self.heads, self.init)

    def before_step(self, run: Run) -> None:
        for adapter in mine(run):
            adapter.turn = run.step % self.heads

    def after_backward(self, run: Run) -> None:
        others = [head for a in mine(run) for h, head in enumerate(a.heads) if h != a.turn]
        self.resting["held"] = held(run, (p for head in others for p in head.parameters()))

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        put_back(run, self.resting["held"])
        self.resting["held"] = []
        if (run.step + 1) % (self.heads * self.merge) == 0:
            for adapter in mine(run):
                for head, merged in zip(adapter.heads, adapter.merged, strict=True):
                    merged.load_state_dict(head.state_dict())


class Head(nn.Module):
    """A (r, k) and B (d, r), zero."""

    def __init__(self, site: Site, *, trained: bool) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype), requires_grad=trained)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype), requires_grad=trained)


class LteAdapter(Delta):
    """`heads` are trained, `merged` are those of the last merge; `turn` is the head that learns in training mode."""

    def __init__(self, site: Site, count: int, init: str) -> None:
        super().__init__(site)
        self.heads: Any = nn.ModuleList(Head(site, trained=True) for _ in range(count))
        self.merged: Any = nn.ModuleList(Head(site, trained=False) for _ in range(count))
        for head in self.heads:
            A: Any = head.A
            if init == "orthogonal":
                nn.init.orthogonal_(A, gain=math.sqrt(site.k / site.rank))
            else:
                nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        self.turn = 0
        self.eval()  # a model that is only used never calls eval()

    def mean(self) -> Factors:
        """All heads as one pair of rank heads * r."""
        count = len(self.heads)
        B, A = torch.cat([h.B / count for h in self.heads], dim=1), torch.cat([h.A for h in self.heads])
        return Factors(B, A, self.site.scale)

    def factors(self) -> Factors:
        if not self.training:
            return self.mean()
        count = len(self.heads)
        # Of all heads, so that each has a gradient, of zero where it is not its turn.
        now = [h.B * float(n == self.turn) for n, h in enumerate(self.heads)]
        then = [h.B * (1 / count - float(n == self.turn)) for n, h in enumerate(self.merged)]
        A = torch.cat([h.A for h in (*self.heads, *self.merged)])
        return Factors(torch.cat([*now, *then], dim=1), A, self.site.scale)

    def delta(self, x: Tensor) -> Tensor:
        B, A, scale = self.factors()
        return scale * linear(linear(x, A), B)

    def delta_weight(self) -> Tensor:
        B, A, scale = self.mean()
        return scale * B @ A

    def peft(self) -> PeftForm:
        B, A, scale = self.mean()
        return PeftForm(A, B, scale)


def mine(run: Run) -> list[LteAdapter]:
    return [m for adapter in run.adapters.values() for m in adapter.modules() if isinstance(m, LteAdapter)]

"""DyLoRA. Valipour et al., 2022, arXiv 2210.07558. The draw is uniform, as in the authors' code, and the factor
alpha / b; their code divides it over A and B. As there, one draw serves all layers and micro-batches of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Dylora(Method):
    """Trains the first b components at each step, b at random: any number of first ones is an adapter by itself."""

    name: ClassVar[str] = "dylora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2210.07558"
    equation: ClassVar[str] = "W + (alpha / b) B[:, :b] A[:b], b drawn from 1 to r at every step"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank r (components after use_rank are zero), or merged model"
    evidence: ClassVar[str] = "sampling, gradients and factors compared with the formulas of the released code"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "arXiv 2210.07558, GLUE"
    # The factor is alpha / b by definition. Not "delta": what is added changes with the draw, no tensor tells.
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks", "scale")
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    may_not_move: ClassVar[tuple[str, ...]] = ("A",)

    use_rank: Annotated[int, Field(ge=1)] | None = None
    """Components that evaluation, merging and export use; none: all."""
    frozen: bool = True
    """Train only the last sampled component, as in the authors' script; otherwise all of them."""
    strict: bool = False
    """Undo what AdamW's momentum and decay do to components without a gradient. The authors' code does not."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        used = site.rank if self.use_rank is None else self.use_rank
        if used > site.rank:
            raise ValueError(f"use_rank {used} is larger than rank {site.rank}: lower it")
        return DyloraAdapter(site, used)

    def drawn(self, run: Run, rank: int) -> int:
        """How many components a layer of `rank` uses in this step: the same share of all in every layer."""
        generator = torch.Generator().manual_seed(seed_of(run.seed, self.name, run.step))
        return 1 + int(torch.rand((), generator=generator, dtype=torch.float64).item() * rank)

    @property
    def acts_between_passes(self) -> bool:
        return self.strict  # else it sets gates that nobody trains

    def before_step(self, run: Run) -> None:
        for adapter in mine(run).values():
            adapter.draw(self.drawn(run, adapter.site.rank), frozen=self.frozen)

    def after_backward(self, run: Run) -> None:
        for name, adapter in mine(run).items():
            if self.strict:
                self.before[name] = adapter.trains.bool(), adapter.A.detach().clone(), adapter.B.detach().clone()
            adapter.rest()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for name, adapter in mine(run).items():
            if self.strict:
                trains, A, B = self.before.pop(name)
                adapter.A.copy_(torch.where(trains[:, None], adapter.A, A))
                adapter.B.copy_(torch.where(trains, adapter.B, B))

    @cached_property
    def before(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Inside one step: which components it trains, and A and B before it."""
        return {}


class DyloraAdapter(Delta):
    """A (r, k) as in LoRA, B (d, r) zero. gate (r,) is r / b for the first b components, of those that are used.

    The drawn gate and the mask of what is trained hold inside a step only, in training mode; nothing else sees them.
    """

    drawn: Tensor
    trains: Tensor

    def __init__(self, site: Site, used: int) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.gate = nn.Parameter(self.first(used), requires_grad=False)
        self.register_buffer("drawn", self.first(used), persistent=False)
        self.register_buffer("trains", torch.ones(site.rank, dtype=site.dtype), persistent=False)
        self.eval()  # a model that is only used never calls eval()

    def first(self, b: int) -> Tensor:
        """The gate of the first b components."""
        rank = self.site.rank
        device = self.gate.device if hasattr(self, "gate") else None  # made where it is used: copies wait for a GPU
        return (torch.arange(rank, device=device) < b).to(self.site.dtype) * (rank / b)

    def draw(self, b: int, *, frozen: bool) -> None:
        self.drawn.copy_(self.first(b))
        self.trains.copy_(self.drawn > 0)
        if frozen:
            self.trains[: b - 1] = 0

    def rest(self) -> None:
        self.drawn.copy_(self.gate)
        self.trains.fill_(1)

    def factors(self) -> Factors:
        if not self.training:
            return Factors(self.B * self.gate, self.A, self.site.scale)
        # x.detach() + (x - x.detach()) * mask is x, with a gradient only where the mask is.
        A = self.A.detach() + (self.A - self.A.detach()) * self.trains[:, None]
        B = self.B.detach() + (self.B - self.B.detach()) * self.trains
        return Factors(B * self.drawn, A, self.site.scale)

    def delta_weight(self) -> Tensor:
        B, A, scale = self.factors()
        return scale * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, scale = self.factors()
        return scale * linear(linear(x, A), B)


def mine(run: Run) -> dict[str, DyloraAdapter]:
    return {name: adapter for name, adapter in run.adapters.items() if isinstance(adapter, DyloraAdapter)}

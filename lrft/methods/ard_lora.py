"""ARD-LoRA. Shinwari and Usama, 2025, arXiv 2506.18267. A reconstruction: no code is published.

    W + (alpha / r) B diag(g) A,    g_i = clamp(r a - i + 1, 0, 1),    i = 1, 2, ...

a is one trained number for each layer: r a components are in use, the last one in part, which is where the gradient
of a comes from. (The paper rounds r a and leaves that gradient open.) Its penalty is strength (sum a + tv sum (a -
a before the last step)^2). One a for each attention head, as in the paper, is left out.
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
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, PeftForm, Site
from lrft.adapters.gated import asked, built
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class ArdLora(Method):
    """Trains, for each layer, how many of its components are in use, under a penalty on their number."""

    name: ClassVar[str] = "ard-lora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2506.18267"
    equation: ClassVar[str] = "W + (alpha / r) B diag(g) A, g_i = clamp(r a - i + 1, 0, 1), a trained"
    parameters: ClassVar[str] = "r' (d + k) + 1, r' = over * rank"
    exports: ClassVar[str] = "PEFT LoRA of the components in use, or merged"
    evidence: ClassVar[str] = "a reconstruction from the paper; with a = 1 kept it is lora to the bit"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as lora, which it starts as"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")
    may_not_move: ClassVar[tuple[str, ...]] = ("a",)

    over: Annotated[float, Field(ge=1)] = 2.0
    """The most that a layer can grow to, over the recipe's rank, with which it starts; ours."""
    ratio: Annotated[float, Field(ge=0)] = 10.0
    """Learning rate of a over that of A and B; ours."""
    strength: Annotated[float, Field(ge=0)] = 1e-3
    """Weight of the penalty; ours: the paper's is not known."""
    tv: Annotated[float, Field(ge=0)] = 1.0
    """Weight, inside the penalty, of the squared change of a from step to step; ours."""

    @cached_property
    def before(self) -> dict[str, Tensor]:
        """a () of each site before the last step."""
        return {}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def lr_factors(self) -> dict[str, float]:
        return {"a": self.ratio}

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        return ArdAdapter(site, asked(site.rank, self.over))

    def loss(self, run: Run) -> Tensor | None:
        if not self.strength:
            return None
        now = {site: adapter.tensors()["a"] for site, adapter in run.adapters.items()}
        change = [(a - self.before.get(site, a.detach()).to(a.device)).square() for site, a in now.items()]
        return self.strength * (torch.stack(list(now.values())).sum() + self.tv * torch.stack(change).sum())

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        self.before.update({site: adapter.tensors()["a"].detach().clone() for site, adapter in run.adapters.items()})

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        """One component at least, and no more than there are."""
        for adapter in run.adapters.values():
            rank = asked(adapter.site.rank, self.over)
            adapter.tensors()["a"].clamp_(1 / rank, adapter.site.rank / rank)

    def state(self) -> dict[str, Tensor]:
        return dict(self.before)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.before.update({site: a.clone() for site, a in state.items()})


class ArdAdapter(Delta):
    """A (r', k) uniform in +-1/sqrt(k), B (d, r') zero, a () one."""

    def __init__(self, site: Site, start: int) -> None:
        super().__init__(site)
        self.start = start
        """components in use at a = 1, r"""
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        self.a = nn.Parameter(torch.ones((), dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def gate(self) -> Tensor:
        """(r',), not rising."""
        before = torch.arange(self.site.rank, dtype=self.a.dtype, device=self.a.device)  # i - 1
        return (self.start * self.a - before).clamp(0, 1)

    def delta_weight(self) -> Tensor:
        return self.site.scale * (self.B * self.gate()) @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A) * self.gate(), self.B)

    def factors(self) -> Factors:
        return Factors(self.B * self.gate(), self.A, self.site.scale)

    def peft(self) -> PeftForm:
        gate = self.gate()
        kept = max(1, int((gate > 0).sum()))
        return PeftForm(self.A[:kept], (self.B * gate)[:, :kept], self.site.scale)

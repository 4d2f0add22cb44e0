"""LaMDA. Azizi et al., 2024, arXiv 2406.12832: s B S A with A frozen, S (r, r) trained, B frozen column by column.

In the first `freeze` of the run the columns of B are frozen one after another; then only S is trained. The released
code's schedule lacks a factor r, freezes three columns at most, and only clears their gradients, so that momentum and
weight decay move them: here the paper's schedule holds, and a frozen column keeps its bits.

`init: kaiming` is the start of the released code. Its paper speaks of the weight's singular vectors and values, which
that code does not have: `init: svd` is a reconstruction, and the update is counted from it. (The ranks of LaMDA++ are
the part `lamda++`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run


@dataclass(frozen=True)
class Lamda(Method):
    """A small square matrix between a frozen projection and one that is frozen column by column."""

    name: ClassVar[str] = "lamda"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2406.12832"
    equation: ClassVar[str] = "W + (alpha / r) B S A, A frozen, B frozen column by column"
    parameters: ClassVar[str] = "r (d + r), at the end r^2"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "update and init compared with the released code; init: svd is a reconstruction"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "ours: ten times LoRA's best on a tiny task; the released scripts have 3e-4"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    init: Literal["kaiming", "svd"] = "kaiming"
    """kaiming: A and S random and B zero; svd: A, S and B from the leading singular triplets of the weight."""
    freeze: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of the run after which all columns of B are frozen."""

    def alpha(self, rank: int) -> float:
        return rank / 4  # 16 for a rank of 64, as in the released code

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has no rank above {most}: lower rank {site.rank}")
        return LamdaAdapter(site, offset_from_init=self.init == "svd")

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        if self.init == "svd":
            U, S, V = svd.leading(W0, adapter.site.rank)
            for p, value in ((adapter.A, V.T), (adapter.S, S.diag() / adapter.site.scale), (adapter.B, U)):
                p.copy_(value)
            adapter.S0.copy_(adapter.S)
            adapter.B0.copy_(adapter.B)

    def frozen(self, rank: int, step: int, total: int) -> int:
        """Columns of B that stay as they are in the step after `step` others."""
        return math.floor(round(rank * min(1.0, step / (self.freeze * total)), 9))

    def after_backward(self, run: Run) -> None:
        for name, adapter, n in self.halted(run):
            if adapter.B.grad is None or n == adapter.site.rank:
                adapter.B.grad = None  # neither momentum nor weight decay moves what has no gradient
                run.optimizer.state.pop(adapter.B, None)
            else:
                self.kept[name] = adapter.B[:, :n].detach().clone()

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for name, adapter, n in self.halted(run):
            if name in self.kept:
                adapter.B[:, :n] = self.kept.pop(name)

    def halted(self, run: Run) -> Iterator[tuple[str, LamdaAdapter, int]]:
        """(its site's name, the adapter, how many columns are frozen) where some are."""
        for name, adapter in run.adapters.items():
            for module in adapter.modules():  # a wrapper may hold it
                if isinstance(module, LamdaAdapter):
                    n = self.frozen(module.site.rank, run.step, run.total_steps)
                    if n:
                        yield name, module, n

    @cached_property
    def kept(self) -> dict[str, Tensor]:
        """Frozen columns, from a step's gradients to its end: the optimiser moves whole tensors."""
        return {}


class LamdaAdapter(Delta):
    """A (r, k) frozen, uniform in +-1/sqrt(k); S (r, r) uniform in +-1/sqrt(r); B (d, r) zero. S0 and B0: svd's start.

    Counted from there without cancellation, B S - B0 S0 = B (S - S0) + (B - B0) S0.
    """

    def __init__(self, site: Site, *, offset_from_init: bool) -> None:
        super().__init__(site)
        self.offset_from_init = offset_from_init
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype), requires_grad=False)
        self.S = nn.Parameter(torch.empty(site.rank, site.rank, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.S, a=math.sqrt(5))
        if offset_from_init:
            self.S0 = nn.Parameter(torch.zeros_like(self.S), requires_grad=False)
            self.B0 = nn.Parameter(torch.zeros_like(self.B), requires_grad=False)

    def left(self) -> Tensor:
        """(d, r), zero at the start."""
        if self.offset_from_init:
            return self.B @ (self.S - self.S0) + (self.B - self.B0) @ self.S0
        return self.B @ self.S

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.left() @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A), self.left())

    def factors(self) -> Factors:
        return Factors(self.left(), self.A, self.site.scale)

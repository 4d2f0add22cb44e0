"""Cuttlefish. Wang et al., 2023, arXiv 2305.02538, for an adapter: a reconstruction. The paper factorises the weight.

    stable rank of dW = |dW|_F^2 / |dW|_2^2, which is at most its rank

Each layer starts with more components than asked for. Once the smoothed stable ranks stand still in every layer, each
update is written by its singular vectors and keeps as many as the stable rank says, for the rest of the run. As
in the released code the change of an exponential average is looked at; there it is one measurement each epoch, of 15
epochs at least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair, asked, built
from lrft.adapters.part import Method, Run
from lrft.methods.fedsvd import balance, factorise

WINDOW = 15
SMOOTH = 2 / (WINDOW + 1)  # weight of a new measurement in an exponential average over WINDOW of them


@dataclass(frozen=True)
class Cuttlefish(Method):
    """Trains with many components until the updates' stable ranks stand still, then with as many as these say."""

    name: ClassVar[str] = "cuttlefish"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2305.02538"
    equation: ClassVar[str] = "W + (alpha / r) B A, cut to about |B A|_F^2 / |B A|_2^2 components"
    parameters: ClassVar[str] = "r' (d + k), r' = over * rank; r (d + k) in the mean after the cut"
    exports: ClassVar[str] = "PEFT LoRA of the components that are left, or merged"
    evidence: ClassVar[str] = (
        "stable ranks by the released formula on the dense product; on an adapter a reconstruction"
    )
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as lora, whose form and start it has"
    slots: ClassVar[tuple[str, ...]] = ("update", "ranks")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    over: Annotated[float, Field(ge=1)] = 2.0
    """Components built over the recipe's rank; ours."""
    ranks: Literal["scaled", "stable"] = "scaled"
    """scaled: in proportion to the stable ranks, the recipe's rank in the mean; stable: the stable ranks, rounded up.
    (The paper scales by the full over the stable rank of the random weight, which an update of zero has not.)"""
    every: Annotated[float, Field(gt=0)] = 0.01
    """Steps between two measurements, or a share of the run when below 1; ours."""
    change: Annotated[float, Field(ge=0)] = 0.1
    """Mean change of a smoothed stable rank from one measurement to the next that counts as standing still."""
    latest: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run after which the cut is made in any case; ours."""

    @cached_property
    def memory(self) -> dict[str, Tensor]:
        """By site: mean/SITE (), the smoothed stable rank, and change/SITE (WINDOW - 4,), its last changes. "cut" () is
        there once the cut is made."""
        return {}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        return [replace(site, rank=built(site.rank, self.over)) for site in sites]

    def build(self, site: Site) -> Delta:
        if site.rank > min(site.d, site.k):
            raise ValueError(f"a {site.d} x {site.k} layer has no {site.rank} singular vectors: lower rank or over")
        adapter = GatedPair(site, trains_gate=False)
        nn.init.kaiming_uniform_(adapter.A, a=math.sqrt(5))
        nn.init.ones_(adapter.gate)
        return adapter

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        done, every = run.step + 1, run.steps(self.every)
        if "cut" in self.memory or (done % every and done < self.latest * run.total_steps):
            return
        for site, adapter in run.adapters.items():
            self.follow(site, stable_rank(adapter.tensors()))
        measured = done // every
        still = [self.memory[f"change/{site}"].mean() <= self.change for site in run.adapters]
        if done >= self.latest * run.total_steps or (measured >= WINDOW and all(still)):
            self.cut(run)

    def follow(self, site: str, now: Tensor) -> None:
        before = self.memory.get(f"mean/{site}", now).to(now.device)
        mean = before.lerp(now, SMOOTH)
        changes = self.memory.get(f"change/{site}", now.new_full((WINDOW - 4,), math.inf))
        self.memory[f"mean/{site}"] = mean
        self.memory[f"change/{site}"] = torch.cat([changes.to(now.device)[1:], (mean - before).abs()[None]])

    def cut(self, run: Run) -> None:
        stable = {site: self.memory[f"mean/{site}"].item() for site in run.adapters}
        most = {site: adapter.site.rank for site, adapter in run.adapters.items()}
        factor = 1.0
        if self.ranks == "scaled":
            factor = sum(asked(rank, self.over) for rank in most.values()) / sum(stable.values())
        for site, adapter in run.adapters.items():
            pair: Any = next(module for module in adapter.modules() if isinstance(module, GatedPair))
            factorise(pair)
            balance(pair)
            kept = min(max(1, math.ceil(round(factor * stable[site], 6))), most[site])
            pair.gate[kept:] = 0
            run.forget(pair.A)
            run.forget(pair.B)
        self.memory["cut"] = torch.tensor(1.0)

    def state(self) -> dict[str, Tensor]:
        return dict(self.memory)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.memory.update({name: tensor.clone() for name, tensor in state.items()})


def stable_rank(tensors: Mapping[str, Tensor]) -> Tensor:
    """|B A|_F^2 / |B A|_2^2 (), from the (r, r) core between two QR decompositions; 1 for a product of zero."""
    right = torch.linalg.qr(tensors["A"].double().T).R
    left = torch.linalg.qr(tensors["B"].double()).R
    S = torch.linalg.svdvals(left @ right.T).square()
    return torch.where(S[0] > 0, S.sum() / S[0].clamp_min(1e-300), 1.0)

"""PRILoRA. Benedek, Wolf, 2024, arXiv 2401.11316: ranks that rise with depth, and an A that is pruned while it trains.

    n <- b n + (1 - b) (norm of each input over the step's tokens);  now and then the least of |A_ij| n_j in each
    row of A become zero, and train on

No code was released; the paper's ranks are 4 to 12, which is half to one and a half times their mean. What is not a
token, padding, has no part in n. What Adam keeps of a pruned entry stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Part, Run
from lrft.model.layers import decoder_of


@dataclass(frozen=True)
class Prilora(Part):
    """Ranks that rise with depth, around the recipe's rank in the middle, and half of A's entries pruned."""

    name: ClassVar[str] = "prilora"
    kind: ClassVar[str] = "ranks"
    paper: ClassVar[str] = "arXiv 2401.11316"
    equation: ClassVar[str] = (
        "rank of block l of 0 to L - 1: r (1 - spread + 2 spread l / (L - 1)); A_ij = 0 where |A_ij| n_j is low"
    )
    evidence: ClassVar[str] = "ranks, norms and pruned entries compared with the paper's formulas; no released code"
    slots: ClassVar[tuple[str, ...]] = ("ranks", "entries")
    requires: ClassVar[tuple[str, ...]] = ("pair",)

    spread: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """The first adapted block has (1 - spread) times the recipe's rank, the last one (1 + spread) times."""
    pruned: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of each row of A that a pruning sets to zero. 0: the ranks alone."""
    every: Annotated[float, Field(gt=0)] = 40.0
    """Steps between prunings, or a fraction of the run when below 1."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """b, the share of the norms of the inputs that a step keeps."""

    @cached_property
    def norms(self) -> dict[str, Tensor]:
        """n (k,) by site."""
        return {}

    @cached_property
    def pass_of(self) -> dict[str, Any]:
        """What is known inside one step: the mask of its tokens, and the sums (k,) of squares by site."""
        return {"mask": None, "squares": {}}

    @property
    def acts_between_passes(self) -> bool:
        return self.pruned > 0

    def assign_ranks(self, sites: Sequence[Site]) -> list[Site]:
        depths = [site.depth for site in sites if site.depth is not None]
        if len(set(depths)) < 2:
            return list(sites)
        first, last = min(depths), max(depths)
        return [
            site
            if site.depth is None
            else replace(site, rank=self.rank(site.rank, (site.depth - first) / (last - first)))
            for site in sites
        ]

    def rank(self, mean: int, place: float) -> int:
        """The rank at `place` from 0, the first block, to 1, the last one; at least 1. Halves are rounded up."""
        return max(1, math.floor(mean * (1 + self.spread * (2 * place - 1)) + 0.5))

    def before_step(self, run: Run) -> None:
        if not self.pruned:
            return
        if "watched" not in self.pass_of:
            self.pass_of["watched"] = True
            decoder_of(run.model).register_forward_pre_hook(self.note_mask, with_kwargs=True)
            for site in run.adapters:
                run.model.get_submodule(site).register_forward_pre_hook(partial(self.add, site))
        self.pass_of["squares"] = {}

    def note_mask(self, decoder: nn.Module, _: Any, given: dict[str, Any]) -> None:
        self.pass_of["mask"] = given.get("attention_mask")

    def add(self, site: str, layer: Any, given: tuple[Tensor, ...]) -> None:
        if layer.training and torch.is_grad_enabled():  # not the base's pass, nor an evaluation
            x, mask, squares = given[0].detach(), self.pass_of["mask"], self.pass_of["squares"]
            fits = mask is not None and mask.shape == x.shape[:-1]
            found = (x[mask.bool()] if fits else x.flatten(0, -2)).to(layer.adapter.site.dtype).square().sum(dim=0)
            squares[site] = squares[site] + found if site in squares else found

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if not self.pruned:
            return
        for site, adapter in run.adapters.items():
            device, none = next(adapter.parameters()).device, torch.zeros(adapter.site.k, dtype=adapter.site.dtype)
            now = run.reduce(self.pass_of["squares"].get(site, none).to(device)).sqrt()
            before = self.norms.get(site, torch.zeros_like(now)).to(now)
            self.norms[site] = self.smoothing * before + (1 - self.smoothing) * now
            if (run.step + 1) % run.steps(self.every) == 0:
                for A in trained_inputs(adapter):
                    least = (A.abs() * self.norms[site]).topk(math.floor(self.pruned * A.shape[1]), largest=False)
                    A.scatter_(1, least.indices, 0.0)

    def state(self) -> dict[str, Tensor]:
        return dict(self.norms)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.norms.update({site: n.clone() for site, n in state.items()})


def trained_inputs(adapter: Adapter) -> Iterator[Tensor]:
    """The factors A (r, k) of an adapter that are trained."""
    for module in adapter.modules():
        A = getattr(module, "A", None)
        if isinstance(A, Tensor) and A.requires_grad and A.shape[-1] == adapter.site.k:
            yield A

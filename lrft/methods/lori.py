"""LoRI. Zhang et al., 2025, arXiv 2504.07448.

The authors train twice, for the mask and from the start with it; here both are phases of one run, with one schedule and
one A; the learning rate of the second is `sparse_rate` times that of the first. Their clipping follows the mask, by
tensor; here the loop clips before it, over all tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method, Run
from lrft.methods.lora import LoraAdapter


@dataclass(frozen=True)
class Lori(Method):
    """LoRA with a random A that stays, and a B of which only the entries that grew largest in a first phase train."""

    name: ClassVar[str] = "lori"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2504.07448"
    equation: ClassVar[str] = "W + (alpha / r) (M * B) A, A frozen, M the largest of |B| over all layers"
    parameters: ClassVar[str] = "r d, of which (1 - sparsity) after the first phase"
    exports: ClassVar[str] = "PEFT LoRA (unchanged) or merged model"
    evidence: ClassVar[str] = "masks and steps compared with the released rules; forward and merge with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "lora's, with sparse_rate times as much under the mask: docs/benchmark.md"
    slots: ClassVar[tuple[str, ...]] = ("update", "entries")
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Share of B's entries that stay zero, 0.9 as in the paper's LoRI-S. 0: a single phase, the paper's LoRI-D."""
    calibration: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the run that finds the mask; B then starts again from zero. The authors train as long as afterwards."""
    sparse_rate: Annotated[float, Field(gt=0)] = 10.0
    """Learning rate in the masked phase relative to the first. The authors' scripts use 10, two of them 5 or 20."""

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """M (d, r) by site; nothing in the first phase."""
        return {}

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        adapter = LoraAdapter(site)
        adapter.A.requires_grad_(False)
        return adapter

    def second_phase(self, run: Run) -> int:
        """The first step under the mask."""
        return max(2, round(self.calibration * run.total_steps))

    def rate(self, run: Run, site: str) -> float:
        return self.sparse_rate if self.sparsity and run.step >= self.second_phase(run) else 1.0

    def before_step(self, run: Run) -> None:
        if self.sparsity and run.step == self.second_phase(run):
            self.start_again(run)

    @torch.no_grad()
    def start_again(self, run: Run) -> None:
        """The masks from all B, which then are as at the start, for the optimiser too."""
        trained = {site: adapter.tensors()["B"] for site, adapter in run.adapters.items()}
        sizes = torch.cat([B.abs().flatten() for B in trained.values()])
        kept = max(1, math.floor(round((1 - self.sparsity) * len(sizes), 6)))
        smallest = sizes.topk(kept).values[-1]
        for site, B in trained.items():
            self.masks[site] = B.abs() >= smallest
            B.zero_()
            run.forget(B)

    def after_backward(self, run: Run) -> None:
        for site, mask in self.masks.items():
            gradient = run.adapters[site].tensors()["B"].grad
            if gradient is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0.0)

    def state(self) -> dict[str, Tensor]:
        return dict(self.masks)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.masks.update({site: mask.clone() for site, mask in state.items()})

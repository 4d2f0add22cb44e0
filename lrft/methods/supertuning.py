"""Super-Tuning, the entries of the weight that are largest. arXiv 2607.09287; by magnitude, as in PEFT.

dW is zero but for the share 1 - sparsity of the entries where |W| is largest (or smallest).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Supertuning(Method):
    """Single entries of the weight, those that are largest: a sparse update chosen without data; it has no rank."""

    name: ClassVar[str] = "supertuning"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2607.09287"
    equation: ClassVar[str] = "W + V, V zero but where |W| is largest"
    parameters: ClassVar[str] = "(1 - sparsity) d k; the rank is not used"
    exports: ClassVar[str] = "PEFT SUPERTUNING, or merged model"
    evidence: ClassVar[str] = "positions, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as sltrain, whose entries are the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    peft_type: ClassVar[str] = "SUPERTUNING"

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Share of the entries that stay as they are."""
    select_top: bool = True
    """false takes the smallest entries instead."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "SUPERTUNING",
            SupertuningAdapter,
            {"values": Named("supertuning_values", "n"), "places": Named("supertuning_indices", "n")},
            options={"sparsity": "sparsity", "select_top": "select_top"},
            fixed={"r": (None,), "lora_alpha": (None,), "save_precomputed_indices": (True,)},
            rank="",
            training=("lora_dropout",),
        )

    def build(self, site: Site) -> Delta:
        count = int(site.d * site.k * (1 - self.sparsity))
        if not count:
            raise ValueError(f"supertuning leaves no entry of a {site.d} x {site.k} layer: lower sparsity")
        return SupertuningAdapter(site, count)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        chosen = W0.abs().flatten().topk(len(adapter.places), largest=self.select_top).indices
        adapter.places.copy_(chosen)


class SupertuningAdapter(Delta):
    """values (n,) zero; places (n,) int32, frozen: of the entries, row by row."""

    def __init__(self, site: Site, count: int) -> None:
        super().__init__(site)
        self.values = nn.Parameter(torch.zeros(count, dtype=site.dtype))
        self.places = nn.Parameter(torch.arange(count, dtype=torch.int32), requires_grad=False)

    def delta_weight(self) -> Tensor:
        """Dense: at a few percent of the entries a dense product is the faster one. Made for each pass, not kept."""
        d, k = self.site.d, self.site.k
        return self.values.new_zeros(d * k).index_add(0, self.places.long(), self.values).view(d, k)

"""SHiRA, sparse high-rank adapters. Bhardwaj et al., 2024, arXiv 2406.13175, with random positions as in PEFT.

dW is zero but for r (d + k) entries at random positions, as many as a LoRA of rank r trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Shira(Method):
    """Single entries of the weight at random positions, as many as a LoRA has numbers: a sparse update of high rank."""

    name: ClassVar[str] = "shira"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2406.13175"
    equation: ClassVar[str] = "W + V, V zero but for r (d + k) entries"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT SHIRA where all ranks are one, or merged model"
    evidence: ClassVar[str] = "positions, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as sltrain, whose entries are the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    peft_type: ClassVar[str] = "SHIRA"

    random_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of the positions, shared by all layers of one shape. They are saved with the adapter."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return ShiraType(
            "SHIRA",
            ShiraAdapter,
            {"values": Named("shira_weight", "n"), "places": Named("shira_indices", "tn")},
            fixed={"mask_type": ("random",)},
            training=("random_seed",),
        )

    def build(self, site: Site) -> Delta:
        count = site.rank * (site.d + site.k)
        if count > site.d * site.k:
            raise ValueError(
                f"shira's r (d + k) = {count} entries are more than the {site.d} x {site.k} layer has: lower the rank"
            )
        return ShiraAdapter(site, count, self.random_seed)


class ShiraAdapter(Delta):
    """values (n,) zero; places (2, n) int32, frozen: rows and columns, row by row."""

    def __init__(self, site: Site, count: int, seed: int) -> None:
        super().__init__(site)
        generator = torch.Generator().manual_seed(seed)
        flat = torch.randperm(site.d * site.k, generator=generator, device="cpu")[:count].sort().values
        self.values = nn.Parameter(torch.zeros(count, dtype=site.dtype))
        places = torch.stack([flat // site.k, flat % site.k]).int()
        self.places = nn.Parameter(places, requires_grad=False)

    def delta_weight(self) -> Tensor:
        """Dense: at a few percent of the entries a dense product is the faster one. Made for each pass, not kept."""
        d, k = self.site.d, self.site.k
        flat = self.places[0].long() * k + self.places[1].long()
        return self.values.new_zeros(d * k).index_add(0, flat, self.values).view(d, k)


@dataclass(frozen=True)
class ShiraType(PeftType):
    """Whatever chose the positions, the file has them."""

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {}

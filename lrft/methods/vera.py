"""VeRA. Kopiczko et al., 2024, arXiv 2310.11454; random values as PEFT draws them from the same seed.

A layer takes the first rows and columns of one A (r, K) and one B (D, r), with K and D the largest numbers of inputs
and outputs among the adapted layers, and r the largest rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Vera(Method):
    """Trains two vectors per layer, around two random matrices that all layers have in common."""

    name: ClassVar[str] = "vera"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2310.11454"
    equation: ClassVar[str] = "W + diag(b) B diag(d) A, A and B random, the same for all layers"
    parameters: ClassVar[str] = "r + d"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT VERA, or merged model"
    evidence: ClassVar[str] = "forward, merge and random matrices compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 5e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: 30 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "VERA"
    provides: ClassVar[tuple[str, ...]] = ("delta", "redrawable")

    d_initial: Annotated[float, Field(gt=0)] = 0.1
    """Initial value of d. PEFT's default; PEFT recommends 0.1 or less."""
    seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of A and B, independent of training.seed; saved with the adapter."""
    save_projection: bool = False
    """Save A and B too, r (D + K) numbers. Without, they are drawn again from the seed, which asks of torch that its
    generator stays what it is."""

    @classmethod
    def in_peft(cls) -> VeraType:
        return VeraType(
            "VERA",
            VeraAdapter,
            {"b": Named("vera_lambda_b", "d"), "d": Named("vera_lambda_d", "r")},
            options={"seed": "projection_prng_key", "save_projection": "save_projection"},
            training=("d_initial",),
            dropout="vera_dropout",
            conv1d=True,
            shared={"A": Named("vera_A", "rk"), "B": Named("vera_B", "dr")},
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Projections(sites, self.seed, trust_the_seed=not self.save_projection)

    def build(self, site: Site) -> Delta:
        return VeraAdapter(site, self.d_initial)

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        largest = max(site.rank for site in sites)
        if largest >= 64:
            return []
        return [f"vera: each rank adds one trainable parameter per layer, and 256 is usual; {largest} is small."]


class Projections(nn.Module):
    """A (r, K), or `halves` of them below each other, then B (D, r): uniform in +-sqrt(6 / columns), which is Kaiming's
    rule with a = 0."""

    A: Tensor
    B: Tensor

    def __init__(self, sites: Sequence[Site], seed: int, *, trust_the_seed: bool, halves: int = 1) -> None:
        super().__init__()
        d, k, r = (max(getattr(site, size) for site in sites) for size in ("d", "k", "rank"))
        generator = torch.Generator().manual_seed(seed)
        for name, shape in (("A", (halves * r, k)), ("B", (d, r))):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
            # In float32 for every base: the same seed means the same matrices.
            drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator).to(sites[0].dtype)
            if trust_the_seed:
                self.register_buffer(name, drawn, persistent=False)
            else:
                self.register_parameter(name, nn.Parameter(drawn, requires_grad=False))


class VeraAdapter(Delta):
    """b (d,) zero and d (r,) constant."""

    def __init__(self, site: Site, d_initial: float) -> None:
        super().__init__(site)
        self.b = nn.Parameter(torch.zeros(site.d, dtype=site.dtype))
        self.d = nn.Parameter(torch.full((site.rank,), d_initial, dtype=site.dtype))

    def projections(self) -> tuple[Tensor, Tensor]:
        """This layer's B (d, r) and A (r, k): views."""
        d, k, r = self.site.d, self.site.k, self.site.rank
        return self.shared.B[:d, :r], self.shared.A[:r, :k]

    def delta_weight(self) -> Tensor:
        B, A = self.projections()
        return (self.b[:, None] * B) @ (self.d[:, None] * A)

    def delta(self, x: Tensor) -> Tensor:
        B, A = self.projections()
        return self.b * linear(self.d * linear(x, A), B)

    def factors(self) -> Factors:
        """Both vectors beside B: A is then frozen, and training keeps the thin product instead of the input."""
        B, A = self.projections()
        return Factors(self.b[:, None] * B * self.d, A, 1.0)


@dataclass(frozen=True)
class VeraType(PeftType):
    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        """With A and B in the file, whatever is kept here: nobody has to draw them again."""
        return super().config(method, adapters, modules) | {"save_projection": True}

"""PVeRA, VeRA with a random code between its matrices. arXiv 2512.07703; random matrices and first values as in PEFT.

    y = W x + b * B z,    z = m + e * exp(v / 2) with e ~ N(0, 1) in training, z = m afterwards,    (m, v) = d * A x

A (2 r, K) and B (D, r) are random and the same for all layers, cut to each. After training it is a VeRA.
"""

from __future__ import annotations

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
from lrft.methods.vera import Projections


@dataclass(frozen=True)
class Pvera(Method):
    """VeRA whose inner values are drawn in training, from a mean and a variance that the input decides."""

    name: ClassVar[str] = "pvera"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2512.07703"
    equation: ClassVar[str] = "W x + diag(b) B z, z ~ N(d1 A1 x, exp(d2 A2 x)) in training, its mean afterwards"
    parameters: ClassVar[str] = "2 r + d"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT PVERA, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge and random matrices compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 5e-3
    rate_source: ClassVar[str] = "as vera"
    slots: ClassVar[tuple[str, ...]] = ("update", "forward")
    peft_type: ClassVar[str] = "PVERA"

    d_initial: Annotated[float, Field(gt=0)] = 0.1
    """Initial value of d."""
    seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of A and B, independent of training.seed; saved with the adapter."""
    save_projection: bool = False
    """Save A and B too, r (D + 2 K) numbers."""

    @classmethod
    def in_peft(cls) -> PveraType:
        return PveraType(
            "PVERA",
            PveraAdapter,
            {"b": Named("pvera_lambda_b", "d"), "d": Named("pvera_lambda_d", "h")},
            options={"seed": "projection_prng_key", "save_projection": "save_projection"},
            fixed={"sample_at_inference": (False,)},
            training=("d_initial", "generator_seed"),
            dropout="pvera_dropout",
            conv1d=True,
            shared={"A": Named("pvera_A", "hk"), "B": Named("pvera_B", "dr")},
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Projections(sites, self.seed, trust_the_seed=not self.save_projection, halves=2)

    def build(self, site: Site) -> Delta:
        return PveraAdapter(site, self.d_initial)


class PveraAdapter(Delta):
    """b (d,) zero and d (2 r,) constant: for the mean, then for the logarithm of the variance."""

    def __init__(self, site: Site, d_initial: float) -> None:
        super().__init__(site)
        self.b = nn.Parameter(torch.zeros(site.d, dtype=site.dtype))
        self.d = nn.Parameter(torch.full((2 * site.rank,), d_initial, dtype=site.dtype))

    def projections(self) -> tuple[Tensor, Tensor, Tensor]:
        """This layer's B (d, r), and A (r, k) of the mean and of the variance: views."""
        d, k, r = self.site.d, self.site.k, self.site.rank
        half = len(self.shared.A) // 2
        return self.shared.B[:d, :r], self.shared.A[:r, :k], self.shared.A[half : half + r, :k]

    def factors(self) -> Factors:
        B, A, _ = self.projections()
        return Factors(self.b[:, None] * B * self.d[: self.site.rank], A, 1.0)

    def delta_weight(self) -> Tensor:
        B, A, _ = self.factors()
        return B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, _ = self.factors()
        return linear(linear(x, A), B)

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        if not self.training:
            return super().forward(x, base)
        B, A_mean, A_spread = self.projections()
        mean, spread = self.d.chunk(2)
        seen = self.cast(self.drop(x))
        code = mean * linear(seen, A_mean)
        code = code + torch.randn_like(code) * (spread * linear(seen, A_spread) / 2).exp()
        y = base(x)
        return y + (self.b * linear(code, B)).to(y.dtype)


@dataclass(frozen=True)
class PveraType(PeftType):
    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        """With A and B in the file, whatever is kept here: nobody has to draw them again."""
        return super().config(method, adapters, modules) | {"save_projection": True}

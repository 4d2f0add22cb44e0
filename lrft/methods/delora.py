"""DeLoRA. Bini et al., 2025, arXiv 2503.18225.

The start is that of the paper: A and B at random, their update subtracted, by a copy that never changes. (PEFT has
B = 0 instead, over a length clamped at 1e-4: the first gradient of B is ten thousand times LoRA's. In the released
code the copy shares its memory with what is trained.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType

SHORTEST = 1e-4


@dataclass(frozen=True)
class Delora(Method):
    """Directions of length one, each input scaled by its weights, and one trained number for the size of the update."""

    name: ClassVar[str] = "delora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2503.18225"
    equation: ClassVar[str] = "W + D - D0, D = (lambda / r) B diag(1 / (|b| |a|)) A diag(column norms of W)"
    parameters: ClassVar[str] = "r (d + k) + 1"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-3
    rate_source: ClassVar[str] = "PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    offset_from_init: ClassVar[bool] = True
    peft_type: ClassVar[str] = "DELORA"

    bound: Annotated[float, Field(gt=0)] = 15.0
    """Initial lambda, the bound on D for unit-norm columns. The authors use 4 to 12."""
    bound_ratio: Annotated[float, Field(gt=0)] = 1.0
    """Learning rate of lambda relative to A and B."""

    @classmethod
    def in_peft(cls) -> DeloraType:
        return DeloraType(
            "DELORA",
            DeloraAdapter,
            {
                "A": Named("delora_A", "rk"),
                "B": Named("delora_B", "dr"),
                "bound": Named("delora_lambda", "o"),
                "norms": Named("delora_w_norm", "k"),
            },
            patterns=("rank_pattern",),
            training=("delora_lambda", "lambda_pattern", "module_dropout"),
        )

    def build(self, site: Site) -> Delta:
        return DeloraAdapter(site, self.bound)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        adapter.norms.copy_(W0.norm(dim=0))

    def lr_factors(self) -> dict[str, float]:
        return {"bound": self.bound_ratio}


class DeloraAdapter(Delta):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) in +-1/sqrt(r); bound (1,) is lambda; norms (k,) of W's columns."""

    def __init__(self, site: Site, bound: float) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.empty(site.d, site.rank, dtype=site.dtype))
        self.bound = nn.Parameter(torch.full((1,), bound, dtype=site.dtype))
        self.norms = nn.Parameter(torch.ones(site.k, dtype=site.dtype), requires_grad=False)
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.B, a=math.sqrt(5))

    def gain(self) -> Tensor:
        """lambda / (r |b| |a|) (r,)."""
        lengths = self.A.norm(dim=1).clamp_min(SHORTEST) * self.B.norm(dim=0).clamp_min(SHORTEST)
        return self.bound / self.site.rank / lengths

    def delta_weight(self) -> Tensor:
        return (self.B * self.gain()) @ self.A * self.norms

    def delta(self, x: Tensor) -> Tensor:
        return linear(linear(x * self.norms, self.A) * self.gain(), self.B)

    def factors(self) -> Factors:
        return Factors(self.B * self.gain(), self.A * self.norms, 1.0)


@dataclass(frozen=True)
class DeloraType(PeftType):
    """Read alone: PEFT subtracts no start. What is read has one of zero, so that all of it is the change."""

    def fits(self, adapter: Adapter) -> bool:
        return False

    def read(self, tensors: Mapping[str, Tensor], site: Site) -> dict[str, Tensor]:
        start = {f"start.{own}": tensor for own, tensor in tensors.items()}
        return {**tensors, **start, "start.B": torch.zeros_like(tensors["B"])}

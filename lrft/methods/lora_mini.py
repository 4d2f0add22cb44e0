"""LoRA-Mini. Singh et al., 2024, arXiv 2411.15804. The authors' code is not published.

    A = A_in A_out,    B = B_out B_in,    A_out (a, k) and B_out (d, a) random and frozen, A_in (r, a), B_in (a, r)

How the parts start and how large a is are a reconstruction. Entries of A_out have the variance 1 / k, those of B_out
1 / a: first steps are as large as LoRA's. Both are drawn again from a seed and the layer's name, and not saved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class LoraMini(Method):
    """LoRA's factors split in two, of which the larger outer parts are random and frozen."""

    name: ClassVar[str] = "lora-mini"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2411.15804"
    equation: ClassVar[str] = "W + (alpha / r) B_out B_in A_in A_out, the outer ones random"
    parameters: ClassVar[str] = "2 r a, a = max(2 r, 64)"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "dense reference of the formula; init and a are a reconstruction"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is the same"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")

    width: Annotated[int, Field(ge=1)] | None = None
    """a, the inner size of both outer parts; null: 2 r, at least 64."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the outer matrices, independent of training.seed; saved with the adapter."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def build(self, site: Site) -> Delta:
        width = max(2 * site.rank, 64) if self.width is None else self.width
        if site.rank > width:
            raise ValueError(f"lora-mini's width {width} caps the rank {site.rank}: raise width or lower rank")
        return LoraMiniAdapter(site, width, self.seed)


class FourFactors(Delta):
    """Abstract: s B_out B_in A_in A_out, of which A_in (r, a) and B_in (a, r) are trained."""

    A_out: Tensor
    """(a, k)"""
    B_out: Tensor
    """(d, a)"""

    def __init__(self, site: Site, width: int) -> None:
        super().__init__(site)
        self.A_in = nn.Parameter(torch.empty(site.rank, width, dtype=site.dtype))
        self.B_in = nn.Parameter(torch.zeros(width, site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * self.B_out @ self.B_in @ self.A_in @ self.A_out

    def delta(self, x: Tensor) -> Tensor:
        thin = linear(linear(linear(x, self.A_out), self.A_in), self.B_in)
        return self.site.scale * linear(thin, self.B_out)

    def factors(self) -> Factors:
        return Factors(self.B_out @ self.B_in, self.A_in @ self.A_out, self.site.scale)


class LoraMiniAdapter(FourFactors):
    """A_in uniform in +-1/sqrt(a), Kaiming's rule with a slope of sqrt(5); B_in zero."""

    def __init__(self, site: Site, width: int, seed: int) -> None:
        super().__init__(site, width)
        nn.init.kaiming_uniform_(self.A_in, a=math.sqrt(5))
        for word, shape, fan in (("A_out", (width, site.k), site.k), ("B_out", (site.d, width), width)):
            generator = torch.Generator().manual_seed(seed_of(seed, site.name, word))
            drawn = torch.empty(shape, device="cpu").normal_(generator=generator) / math.sqrt(fan)
            self.register_buffer(word, drawn.to(site.dtype), persistent=False)

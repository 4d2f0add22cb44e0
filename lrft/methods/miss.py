"""MiSS, earlier DiSHA. Kang, Yin, 2024, arXiv 2409.15371; as in PEFT's `miss`, which the authors maintain.

    dW = D.T T,    T = [I I I ...] (r, k) cut at k columns,    D (r, d)

T x sums every r-th input, so half of LoRA's products are additions. The mini form keeps m columns of D and repeats
them over the outputs. The paper's first form, Bone, multiplies the weight: it is the method `bone`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from lrft.adapters.adapter import Delta, PeftForm, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Miss(Method):
    """One matrix of rows shared by every r-th input: a LoRA whose A is a row of identities, never stored."""

    name: ClassVar[str] = "miss"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.15371"
    equation: ClassVar[str] = "W + D.T [I I I ...]"
    parameters: ClassVar[str] = "r d, or r m"
    exports: ClassVar[str] = "PEFT LoRA of rank r, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    mini: Annotated[int, Field(ge=0)] = 0
    """m, how many columns of D are kept and repeated over the outputs; 0 keeps one for each output."""

    def build(self, site: Site) -> Delta:
        if site.rank > site.k:
            raise ValueError(f"miss shares rows among {site.k} inputs: rank {site.rank} must not be larger")
        if self.mini and site.d % self.mini:
            raise ValueError(f"miss repeats {self.mini} columns over {site.d} outputs: set mini to a divisor of them")
        return MissAdapter(site, self.mini or site.d)


class MissAdapter(Delta):
    """D (r, m) zero."""

    def __init__(self, site: Site, columns: int) -> None:
        super().__init__(site)
        self.D = nn.Parameter(torch.zeros(site.rank, columns, dtype=site.dtype))

    def tile(self) -> Tensor:
        """T (r, k)."""
        r, k = self.site.rank, self.site.k
        return torch.eye(r, dtype=self.D.dtype, device=self.D.device).repeat(1, math.ceil(k / r))[:, :k]

    def rows(self) -> Tensor:
        """D.T repeated over the outputs, (d, r)."""
        return self.D.T.repeat(self.site.d // self.D.shape[1], 1)

    def delta_weight(self) -> Tensor:
        return self.rows() @ self.tile()

    def delta(self, x: Tensor) -> Tensor:
        r, k = self.site.rank, self.site.k
        shared = pad(x, (0, -k % r)).unflatten(-1, (-1, r)).sum(dim=-2)
        y = shared @ self.D
        return y.repeat(*[1] * (y.ndim - 1), self.site.d // self.D.shape[1])

    def peft(self) -> PeftForm:
        return PeftForm(self.tile(), self.rows(), 1.0)

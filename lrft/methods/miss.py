"""MiSS, earlier DiSHA. Kang, Yin, 2024, arXiv 2409.15371; as in PEFT's `miss`, which the authors maintain.

    dW = D.T T,    T = [I I I ...] (r, k) cut at k columns,    D (r, d)

T x sums every r-th input, so half of LoRA's products are additions. The mini form keeps m columns of D and repeats
them over the outputs. The paper's first form, Bone, multiplies the weight: it is the method `bone`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from lrft.adapters.adapter import Delta, PeftForm, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Miss(Method):
    """One matrix of rows shared by every r-th input: a LoRA whose A is a row of identities, never stored."""

    name: ClassVar[str] = "miss"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.15371"
    equation: ClassVar[str] = "W + D.T [I I I ...]"
    parameters: ClassVar[str] = "r d, or r m"
    exports: ClassVar[str] = "PEFT LoRA of rank r, PEFT MISS, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "MISS"
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    mini: Annotated[int, Field(ge=0)] = 0
    """m, how many columns of D are kept and repeated over the outputs; 0 keeps one for each output."""

    @classmethod
    def in_peft(cls) -> MissType:
        return MissType("MISS", MissAdapter, {"D": Named("miss_block", "rc")}, dropout="miss_dropout")

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


@dataclass(frozen=True)
class MissType(PeftType):
    """PEFT says by `init_weights` which of the paper's forms it is."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        said = {"init_weights": "mini", "mini_r": method.mini} if method.mini else {"init_weights": True, "mini_r": 1}
        return super().config(method, adapters, modules) | said

    def refusal(self, config: Mapping[str, Any]) -> str:
        form = config.get("init_weights")
        if form not in (True, False, "mini"):
            return f"init_weights is {form!r}, another form of miss"
        return super().refusal({key: value for key, value in config.items() if key != "mini_r"})

    def values(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"mini": config["mini_r"] if config.get("init_weights") == "mini" else 0}

"""ResLoRA with block shortcuts. Shi et al., 2024, arXiv 2402.18039.

    y_n = W_n x + s sum_{i = 0..p} B_{n-i} A_{n-i} x,    n counts the layers of one kind and shape in the model's order

Each pair is trained, and used by p layers more. The paper's input and middle shortcuts carry activations from layer to
layer, so no weight can hold them, and neither can a layer that is computed again by itself: they are left out. A layer
whose rank differs from its kind's stands in a chain of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.methods.denselora import key_of


@dataclass(frozen=True)
class Reslora(Method):
    """LoRA whose pairs also serve the next layers of the same kind."""

    name: ClassVar[str] = "reslora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2402.18039"
    equation: ClassVar[str] = "W_n + (alpha / r) (B_n A_n + ... + B_{n-p} A_{n-p})"
    parameters: ClassVar[str] = "r (d + k)"
    exports: ClassVar[str] = "PEFT LoRA of rank (p + 1) r, or merged model"
    evidence: ClassVar[str] = (
        "output compared with the released code's block shortcut; its two other shortcuts are not included"
    )
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "released scripts"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    previous: Annotated[int, Field(ge=0)] = 1
    """p, the layers before this one whose pairs it uses too; 0 is LoRA."""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        chains: dict[str, list[Site]] = {}
        for site in sites:
            chains.setdefault(chain_of(site), []).append(site)
        return nn.ModuleDict({key: Chain(chain) for key, chain in chains.items()})

    def build(self, site: Site) -> Delta:
        return ResloraAdapter(site, self.previous)


def chain_of(site: Site) -> str:
    return f"{key_of(site)}-{site.rank}"


class Pair(nn.Module):
    """A (r, k) uniform in +-1/sqrt(k), B (d, r) zero."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))


class Chain(nn.Module):
    """The pairs of the layers of one kind, shape and rank."""

    def __init__(self, sites: Sequence[Site]) -> None:
        super().__init__()
        self.places = {site.name: n for n, site in enumerate(sites)}
        self.pairs = nn.ModuleList(Pair(site) for site in sites)


class ResloraAdapter(Delta):
    """Has no tensor of its own: its pair is one of the chain's."""

    def __init__(self, site: Site, previous: int) -> None:
        super().__init__(site)
        self.previous = previous

    def factors(self) -> Factors:
        """The pairs of this layer and of those before it, side by side."""
        chain: Any = self.shared[chain_of(self.site)]
        last = chain.places[self.site.name] + 1
        pairs = chain.pairs[max(0, last - 1 - self.previous) : last]
        return Factors(torch.cat([p.B for p in pairs], dim=1), torch.cat([p.A for p in pairs]), self.site.scale)

    def delta_weight(self) -> Tensor:
        B, A, s = self.factors()
        return s * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, s = self.factors()
        return s * linear(linear(x, A), B)

"""LoRTA. Hounie et al., 2024, arXiv 2410.04060: the updates of all attention layers are one tensor of CP rank r.

The axes are the model's width, a head's width, heads, layers, and the matrices (query, key, value, output):
    dW of head h = s B diag(C_h[h] C_l[layer] C_m[matrix]) A'
stacked along the outputs, and for the output matrix, whose heads are its inputs, transposed. (The released code has
heads along the inputs of all four.) Two things are ours: keys and values of fewer heads use the first rows of C_h, and
a layer outside of attention is one head as wide as its inner side, those of equal widths in a tensor of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method
from lrft.methods.plop import kind_of

# Last words of matrices that write to the residual stream: their inner side is their inputs.
WRITERS = {"o_proj", "out_proj", "c_proj", "dense", "wo", "o", "down_proj", "dense_4h_to_h", "fc2", "fc_out", "w2"}


@dataclass(frozen=True)
class Lorta(Method):
    """One CP tensor for the attention matrices of all layers: five thin factors for the whole model."""

    name: ClassVar[str] = "lorta"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2410.04060"
    equation: ClassVar[str] = (
        "W + (alpha / r) [B diag(C_h[h] C_l C_m) A'] over heads h, factors the same for all layers"
    )
    parameters: ClassVar[str] = "r (width + head + heads + layers + matrices), once for the model"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = "update and init compared with the released code, transposed to its head dimension"
    learning_rate: ClassVar[float] = 2e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: ten times LoRA's best, or more; the paper has 5e-5 for preferences"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale")

    head_dim: Annotated[int, Field(ge=1)] = 64
    """Width of the model's attention heads: 128 in most of Llama, Mistral and Qwen, 64 in many smaller models."""

    def alpha(self, rank: int) -> float:
        return 16.0

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        groups: dict[str, list[tuple[Site, Place]]] = {}
        for site in sites:
            place = place_of(site, self.head_dim)
            groups.setdefault(place.group, []).append((site, place))
        return nn.ModuleDict({key: CpFactors(members) for key, members in groups.items()})

    def build(self, site: Site) -> Delta:
        return LortaAdapter(site, self.head_dim)


class Place(NamedTuple):
    """Where a layer lies in its tensor."""

    width: int
    """of the model: the side without heads"""
    head: int
    heads: int
    writes: bool
    """heads are along the inputs"""

    @property
    def group(self) -> str:
        return f"{self.width}x{self.head}"


def place_of(site: Site, head_dim: int) -> Place:
    """Raises ValueError when an attention layer has no whole number of heads."""
    writes = site.name.rpartition(".")[2] in WRITERS
    width, inner = (site.d, site.k) if writes else (site.k, site.d)
    if "attn" not in site.name.lower() and "attention" not in site.name.lower():
        return Place(width, inner, 1, writes)
    if inner % head_dim:
        side = "inputs" if writes else "outputs"
        raise ValueError(
            f"{site.name}: {inner} {side} are not a multiple of {head_dim}: set lorta's head_dim to that of the model, "
            "or leave the layer out with exclude_modules"
        )
    return Place(width, head_dim, inner // head_dim, writes)


class CpFactors(nn.Module):
    """A (width, r) uniform in +-1/sqrt(r), B (head, r) zero; C_h, C_l, C_m (., r) uniform in +-sqrt(6/r)."""

    def __init__(self, members: Sequence[tuple[Site, Place]]) -> None:
        super().__init__()
        sites, places = [site for site, _ in members], [place for _, place in members]
        self.layers = list(dict.fromkeys(site.depth for site in sites))
        self.kinds = list(dict.fromkeys(kind_of(site.name) for site in sites))
        r, dtype = max(site.rank for site in sites), sites[0].dtype
        sizes = {"C_h": max(place.heads for place in places), "C_l": len(self.layers), "C_m": len(self.kinds)}
        self.A = nn.Parameter(torch.empty(places[0].width, r, dtype=dtype).uniform_(-1, 1) / math.sqrt(r))
        self.B = nn.Parameter(torch.zeros(places[0].head, r, dtype=dtype))
        for word, size in sizes.items():
            start = math.sqrt(6 / r) * torch.empty(size, r, dtype=dtype).uniform_(-1, 1)
            self.register_parameter(word, nn.Parameter(start))


class LortaAdapter(Delta):
    """Has no tensor of its own. A layer of a lower rank takes the first columns of every factor."""

    def __init__(self, site: Site, head_dim: int) -> None:
        super().__init__(site)
        self.head_dim = head_dim

    def factors(self) -> Factors:
        site, place = self.site, place_of(self.site, self.head_dim)
        own: Any = self.shared[place.group]
        r = site.rank
        A, B, C_h = own.A[:, :r], own.B[:, :r], own.C_h[: place.heads, :r]
        C = own.C_l[own.layers.index(site.depth), :r] * own.C_m[own.kinds.index(kind_of(site.name)), :r]
        heads, wide = (C_h[:, None] * B).flatten(0, 1), A * C
        return Factors(wide, heads.T, site.scale) if place.writes else Factors(heads, wide.T, site.scale)

    def delta_weight(self) -> Tensor:
        B, A, s = self.factors()
        return s * B @ A

    def delta(self, x: Tensor) -> Tensor:
        B, A, s = self.factors()
        return s * linear(linear(x, A), B)

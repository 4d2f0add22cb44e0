"""DenseLoRA. Mu et al., 2025, arXiv 2505.23808: an encoder and a decoder for all layers of a kind, M for each layer.

    y = W x + s gelu(D M gelu(E x)),    E (r, k) and D (d, r) shared, M (r, r) of the layer's own

as the released class computes it; that file does not run as published, so that nothing says whether the published
numbers are those of this form. Without gelu it is `lotr`. Layers are of one kind when their names differ in numbers
only. Dropout acts on the input; the code also drops after each gelu.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method


@dataclass(frozen=True)
class Denselora(Method):
    """A small square matrix per layer, between an encoder and a decoder that all layers of a kind share. Not linear."""

    name: ClassVar[str] = "denselora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2505.23808"
    equation: ClassVar[str] = "W x + (alpha / r) gelu(D M gelu(E x)), D and E the same for all layers of a kind"
    parameters: ClassVar[str] = "r^2, and r (d + k) once for each kind of layer"
    exports: ClassVar[str] = "not mergeable: use as an adapter"
    evidence: ClassVar[str] = "output compared with the released code's class"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "released scripts"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("scale",)
    may_not_move: ClassVar[tuple[str, ...]] = ("M",)
    """in the first step, for which D is zero"""

    def alpha(self, rank: int) -> float:
        return 2.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        largest: dict[str, Site] = {}
        for site in sites:
            key = key_of(site)
            if key not in largest or site.rank > largest[key].rank:
                largest[key] = site
        return nn.ModuleDict({key: Coder(site) for key, site in largest.items()})

    def build(self, site: Site) -> Delta:
        return DenseloraAdapter(site)


def key_of(site: Site) -> str:
    """The name of a layer's kind in files. Layers of one name and two shapes, as of a vision tower, are two kinds."""
    words = [word for word in site.name.split(".") if not word.isdigit()]
    return "-".join([*words, f"{site.d}x{site.k}"])


class Coder(nn.Module):
    """E (r, k) uniform in +-1/sqrt(k), D (d, r) zero, of the largest rank of their kind."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.E = nn.Parameter(torch.empty(site.rank, site.k, dtype=site.dtype))
        self.D = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.E, a=math.sqrt(5))


class DenseloraAdapter(Delta):
    """M (r, r) uniform in +-1/sqrt(r). A layer of a lower rank takes the first rows of E and columns of D."""

    mergeable: ClassVar[bool] = False

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.M = nn.Parameter(torch.empty(site.rank, site.rank, dtype=site.dtype))
        nn.init.kaiming_uniform_(self.M, a=math.sqrt(5))

    def delta_weight(self) -> Tensor:
        raise TypeError(f"{self.site.name}: not mergeable: the update is not linear in the input")

    def delta(self, x: Tensor) -> Tensor:
        coder: Any = self.shared[key_of(self.site)]
        r = self.site.rank
        code = gelu(linear(x, coder.E[:r]))
        return self.site.scale * gelu(linear(linear(code, self.M), coder.D[:, :r]))

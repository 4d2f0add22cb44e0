"""TinyLoRA, LoRA-XS whose square matrix is made of a short vector. Morris et al., 2026, arXiv 2602.04118.

    dW = B (sum_i v_i P_i) A,    B = U sqrt(S),  A = sqrt(S) V'

U, S, V are the r leading singular triplets of W, P_i (r, r) random and fixed. Layers of one group train one v together.
Groups and random matrices are PEFT's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, FactoredDelta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.adapters.svd import exact, leading


@dataclass(frozen=True)
class Tinylora(Method):
    """A short vector for a layer, or for several, spread by fixed random matrices between the weight's own leading
    singular vectors."""

    name: ClassVar[str] = "tinylora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2602.04118"
    equation: ClassVar[str] = "W + B (sum_i v_i P_i) A, B = U sqrt(S), A = sqrt(S) V', P_i random and fixed"
    parameters: ClassVar[str] = "u for each group of layers, whatever the rank"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT TINYLORA, or merged model"
    evidence: ClassVar[str] = "forward, gradients, merge, groups and random matrices compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 4e-3
    rate_source: ClassVar[str] = "as lora-xs, whose matrix has the same size"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    peft_type: ClassVar[str] = "TINYLORA"

    u: Annotated[int, Field(ge=1)] = 64
    """Numbers of a vector."""
    weight_tying: Annotated[float, Field(ge=0, le=1)] = 0.0
    """0 is a vector for each layer, 1 one for all; between, groups of layers that follow each other."""
    projection_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 42
    """Seed of the random matrices of the first layer; the next one's is one higher. They are saved."""
    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return TinyloraType(
            "TINYLORA",
            TinyloraAdapter,
            {
                "A": Named("tinylora_A", "rk"),
                "B": Named("tinylora_B", "dr"),
                "P": Named("tinylora_P", "urs"),
            },
            options={word: word for word in ("u", "weight_tying", "projection_seed")},
            training=("init_v_bound", "save_projection"),
            dropout="tinylora_dropout",
            conv1d=True,
            shared={"v": Named("tinylora_v", "gu")},
            whole=False,
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Vectors(sites, self.u, self.weight_tying)

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular vectors: lower rank {site.rank}")
        return TinyloraAdapter(site, self.u)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        decompose = exact if self.svd == "exact" else leading
        U, S, V = decompose(W0, adapter.site.rank)
        adapter.A.copy_(S.sqrt()[:, None] * V.T)
        adapter.B.copy_(U * S.sqrt())
        adapter.P.copy_(self.projections(adapter.site.rank, adapter.shared.places[adapter.site.name]))

    def projections(self, rank: int, place: int) -> Tensor:
        """(u, r, r) with variance 1 / r, of the layer at `place` among all."""
        generator = torch.Generator().manual_seed(self.projection_seed + place)
        return torch.normal(0.0, rank**-0.5, (self.u, rank, rank), generator=generator)


class Vectors(nn.Module):
    """v (groups, u) zero."""

    def __init__(self, sites: Sequence[Site], u: int, tying: float) -> None:
        super().__init__()
        groups = max(1, round(len(sites) * (1 - tying)))
        size = max(1, len(sites) // groups)
        self.places = {site.name: place for place, site in enumerate(sites)}
        self.groups = {site.name: min(place // size, groups - 1) for place, site in enumerate(sites)}
        self.v = nn.Parameter(torch.zeros(groups, u, dtype=sites[0].dtype))


class TinyloraAdapter(FactoredDelta):
    """A (r, k), B (d, r) and P (u, r, r) frozen, set from the weight and the seed."""

    def __init__(self, site: Site, u: int) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype), requires_grad=False)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype), requires_grad=False)
        self.P = nn.Parameter(torch.zeros(u, site.rank, site.rank, dtype=site.dtype), requires_grad=False)

    def factors(self) -> Factors:
        v = self.shared.v[self.shared.groups[self.site.name]]
        return Factors(self.B @ torch.einsum("u,urs->rs", v, self.P), self.A, 1.0)


@dataclass(frozen=True)
class TinyloraType(PeftType):
    """One vector of the file for each group, by number. A file without P is one whose seed is to be trusted."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"save_projection": True}

    def shared_of(self, shared: Any, sites: Sequence[Site]) -> dict[str, Tensor]:
        return {f"tinylora_v.{number}": v for number, v in enumerate(shared.v)}

    def common(self, ending: str) -> str:
        found = re.fullmatch(r"tinylora_v\.(\d+)", ending)
        return found[1] if found else ""

    def completed(
        self,
        method: Any,
        tensors: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        sites: Sequence[Site],
        weight: Callable[[Site], Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        drawn = {site.name: method.projections(site.rank, place) for place, site in enumerate(sites)}
        return {name: {"P": drawn[name], **own} for name, own in tensors.items()}

    def read_shared(self, shared: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Tensor]:
        return {"v": torch.stack([shared[number] for number in sorted(shared, key=int)])}

"""Uni-LoRA, all factors of all layers from one vector. Li et al., 2025, arXiv 2506.00799; places as in PEFT.

    dW = B A,    each number of A and B is theta_j / sqrt(n_j)

j is drawn for each number of each layer, every j equally often, and n_j is how often it was: the projection from theta
to the numbers is an isometry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, FactoredDelta, Factors, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Unilora(Method):
    """One short vector is all that is trained and stored: each of its numbers stands at many places of A and B, in all
    layers."""

    name: ClassVar[str] = "unilora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2506.00799"
    equation: ClassVar[str] = "W + B A, whose numbers are those of one vector, at random places"
    parameters: ClassVar[str] = "theta_d_length once, whatever rank and layers"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, PEFT UNILORA, or merged model"
    evidence: ClassVar[str] = "places, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 3e-2
    rate_source: ClassVar[str] = "by analogy: three times vblora's, as each number is divided by the root of its places"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    init_changes_output: ClassVar[bool] = True
    peft_type: ClassVar[str] = "UNILORA"

    theta_d_length: Annotated[int, Field(ge=1)] = 256
    """Numbers of the vector."""
    proj_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 42
    """Seed of the places, independent of training.seed; saved with the adapter."""
    init_theta_d_bound: Annotated[float, Field(gt=0)] = 0.02
    """The vector starts uniform within it: the update is no zero at the start, but small."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return UniloraType(
            "UNILORA",
            UniloraAdapter,
            {
                "places_A": Named("unilora_indices_A", "rk"),
                "places_B": Named("unilora_indices_B", "dr"),
                "factors_A": Named("unilora_scales_A", "rk"),
                "factors_B": Named("unilora_scales_B", "dr"),
            },
            options={word: word for word in ("theta_d_length", "proj_seed")},
            training=("init_theta_d_bound", "save_indices"),
            dropout="unilora_dropout",
            conv1d=True,
            shared={"theta": Named("unilora_theta_d", "n")},
            whole=False,
            by_targets=True,
        )

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Theta(sites, self)

    def build(self, site: Site) -> Delta:
        return UniloraAdapter(site)


class Theta(nn.Module):
    """theta (n,) uniform within the bound; of each number of all layers, A and then B row by row, which it is."""

    places: Tensor
    factors: Tensor

    def __init__(self, sites: Sequence[Site], method: Unilora) -> None:
        super().__init__()
        length, bound = method.theta_d_length, method.init_theta_d_bound
        self.theta = nn.Parameter(torch.empty(length, dtype=sites[0].dtype).uniform_(-bound, bound))
        sizes = [site.rank * (site.d + site.k) for site in sites]
        self.begins = {site.name: sum(sizes[:n]) for n, site in enumerate(sites)}
        drawn = drawn_places(sum(sizes), length, method.proj_seed)
        counts = torch.from_numpy(np.bincount(drawn, minlength=length).clip(min=1))
        self.register_buffer("places", torch.from_numpy(drawn).int(), persistent=False)
        self.register_buffer("factors", counts.to(self.theta.dtype).rsqrt(), persistent=False)

    def of(self, site: Site) -> tuple[Tensor, Tensor]:
        """Places in theta of A (r, k) and of B (d, r): views."""
        begin, r = self.begins[site.name], site.rank
        own = self.places[begin : begin + r * (site.d + site.k)]
        return own[: r * site.k].view(r, site.k), own[r * site.k :].view(site.d, r)


def drawn_places(total: int, length: int, seed: int) -> np.ndarray:
    """(total,) int64: every number below `length` equally often, and once more those that numpy's generator draws for
    what is left, in an order that it draws next."""
    generator = np.random.default_rng(seed)
    places = np.repeat(np.arange(length), total // length)
    if left := total % length:
        places = np.append(places, generator.choice(length, size=left, replace=False))
    generator.shuffle(places)
    return places


class UniloraAdapter(FactoredDelta):
    """Has no tensor of its own."""

    def factors(self) -> Factors:
        numbers = self.shared.theta * self.shared.factors
        A, B = (numbers.index_select(0, at.flatten()).view(at.shape) for at in self.shared.of(self.site))
        return Factors(B, A, 1.0)


@dataclass(frozen=True)
class UniloraType(PeftType):
    """A file holds places and factors, or theta alone, whose layers are those of target_modules. They are drawn again
    in any case, and those of a file must be the same."""

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        return super().config(method, adapters, modules) | {"save_indices": True}

    def written(self, adapter: Any) -> dict[str, Tensor]:
        found = {}
        for word, places in zip("AB", adapter.shared.of(adapter.site), strict=True):
            found[f"unilora_indices_{word}"] = places.long().contiguous()
            found[f"unilora_scales_{word}"] = adapter.shared.factors[places.long()].float()
        return found

    def completed(
        self,
        method: Any,
        tensors: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Tensor],
        sites: Sequence[Site],
        weight: Callable[[Site], Tensor],
    ) -> dict[str, dict[str, Tensor]]:
        drawn = Theta(sites, method)
        for site in sites:
            for word, places in zip("AB", drawn.of(site), strict=True):
                if f"places_{word}" not in tensors[site.name]:
                    continue
                said = tensors[site.name][f"places_{word}"]
                factors = tensors[site.name].get(f"factors_{word}")
                made = drawn.factors[places.long()]
                if not torch.equal(said, places) or factors is None or not torch.allclose(factors.to(made), made):
                    raise ValueError(
                        f"{site.name}: places of theta are not those of proj_seed {method.proj_seed} over these layers"
                    )
        return {name: {} for name in tensors}

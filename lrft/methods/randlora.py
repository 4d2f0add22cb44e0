"""RandLoRA. Albert et al., 2025, arXiv 2502.00987.

    C = sum_j B_j diag(Lambda[:, j]) A diag(Gamma[j]) (M, m),    m = min(d, k), M = max(d, k), n = ceil(m / r) bases,
    dW = s C for k = m, else s C'

One A (r, m) and one long B (M, n r) are random and the same for all layers, sliced to each. As in both released codes,
B_j is columns j, n + j, 2 n + j, ... of B. The factor is PEFT's; the authors' own divides by sqrt(n) as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType
from lrft.model.fused_linear import sum_pays_from


@dataclass(frozen=True)
class Randlora(Method):
    """An update of full rank: a sum of random low-rank matrices of which only the scalings are trained."""

    name: ClassVar[str] = "randlora"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2502.00987"
    equation: ClassVar[str] = "W + (alpha / r) sum_j B_j diag(L_j) A diag(G_j), A and B random, the same for all layers"
    parameters: ClassVar[str] = "ceil(m / r) (r + m), m = min(d, k)"
    exports: ClassVar[str] = "PEFT RANDLORA where all ranks are one, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 1e-4
    rate_source: ClassVar[str] = "the released recipe for commonsense, and PEFT's method comparison, Llama-3.2-3B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta", "scale", "redrawable")
    peft_type: ClassVar[str] = "RANDLORA"

    bases: Literal["dense", "sparse", "very-sparse"] = "dense"
    """Entries uniform; or -1, 0, 1, of which two thirds, or all but 1 / sqrt(m), are 0. Of variance one in each case.
    Where a sparse A has r zeros below one another, no base reaches that input or output."""
    by_count: bool = False
    """Divide the update by sqrt(n) as well, as the authors' code does; their alpha is then 2 r."""
    seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 0
    """Seed of A and B, independent of training.seed; saved with the adapter."""
    save_projection: bool = False
    """Save A and B too. PEFT draws other ones, so a start from a folder of PEFT needs it."""

    @classmethod
    def in_peft(cls) -> RandloraType:
        return RandloraType(
            "RANDLORA",
            RandloraAdapter,
            {"Lambda": Named("randlora_lambda", "rn"), "Gamma": Named("randlora_gamma", "nm")},
            alpha="randlora_alpha",
            dropout="randlora_dropout",
            training=("projection_prng_key", "sparse", "very_sparse"),
            fixed={"save_projection": (True,)},
            conv1d=True,
            shared={"A": Named("randlora_A", "rom"), "B": Named("randlora_B", "Mnr")},
            repeated=("randlora_A", "randlora_B"),
        )

    def alpha(self, rank: int) -> float:
        return 20.0 * rank

    def scale(self, alpha: float, rank: int) -> float:
        return alpha / rank

    def shared(self, sites: Sequence[Site]) -> nn.Module:
        return Bases(sites, self.bases, self.seed, saved=self.save_projection)

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(
                f"randlora's bases for a {site.d} x {site.k} layer have rank {most}: lower rank {site.rank}"
            )
        return RandloraAdapter(site, by_count=self.by_count)


def bases_of(site: Site) -> int:
    return math.ceil(min(site.d, site.k) / site.rank)


class Bases(nn.Module):
    """A (r, m), then B (M, n r), each as large as the layer that needs most of it, from one generator."""

    A: Tensor
    B: Tensor

    def __init__(self, sites: Sequence[Site], kind: str, seed: int, *, saved: bool) -> None:
        super().__init__()
        m = max(min(site.d, site.k) for site in sites)
        M = max(max(site.d, site.k) for site in sites)
        columns = max(bases_of(site) * site.rank for site in sites)
        generator = torch.Generator().manual_seed(seed)
        share = {"dense": 1.0, "sparse": 1 / 3, "very-sparse": m**-0.5}[kind]
        for name, shape in (("A", (max(site.rank for site in sites), m)), ("B", (M, columns))):
            drawn = torch.empty(shape).uniform_(-1, 1, generator=generator)  # float32: the same for every base
            if kind != "dense":
                drawn = drawn.sign() * (drawn.abs() > 1 - share)
            made = (drawn / drawn.std()).to(sites[0].dtype)
            if saved:
                self.register_parameter(name, nn.Parameter(made, requires_grad=False))
            else:
                self.register_buffer(name, made, persistent=False)


class RandloraAdapter(Delta):
    """Lambda (r, n) zero; Gamma (n, m) constant, 1 / its longer side."""

    def __init__(self, site: Site, *, by_count: bool) -> None:
        super().__init__(site)
        n, m = bases_of(site), min(site.d, site.k)
        self.Lambda = nn.Parameter(torch.zeros(site.rank, n, dtype=site.dtype))
        self.Gamma = nn.Parameter(torch.full((n, m), 1 / max(n, m), dtype=site.dtype))
        self.factor = site.scale / math.sqrt(n) if by_count else site.scale

    def scaled(self) -> tuple[Tensor, Tensor]:
        """C = P Q: P (M, n r), a view, and Q (n r, m), as large as the smaller square of the weight."""
        n, m, r = bases_of(self.site), min(self.site.d, self.site.k), self.site.rank
        P = self.shared.B[: max(self.site.d, self.site.k), : n * r]
        Q = self.shared.A[:r, None, :m] * self.Lambda[:, :, None] * self.Gamma
        return P, Q.flatten(0, 1)

    def delta_weight(self) -> Tensor:
        P, Q = self.scaled()
        core = self.factor * P @ Q
        return core if self.site.k == Q.shape[1] else core.T

    def sums_from(self) -> float:
        return sum_pays_from(bases_of(self.site) * self.site.rank, self.site.d, self.site.k)

    def delta(self, x: Tensor) -> Tensor:
        P, Q = self.scaled()
        thin = linear(linear(x, Q), P) if self.site.k == Q.shape[1] else linear(linear(x, P.T), Q.T)
        return self.factor * thin


@dataclass(frozen=True)
class RandloraType(PeftType):
    """PEFT's B is (M, n, r) and its A (r, 1, m), for a layer of the most inputs and the most outputs of all.

    PEFT repeats both in every layer's part of the file. Here they are written once: PEFT names the others as missing
    when it loads the folder, and uses the one that it has.
    """

    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        if method.by_count:
            raise ValueError("stock PEFT does not divide by the root of the number of bases (by_count)")
        said = {"sparse": method.bases == "sparse", "very_sparse": method.bases == "very-sparse"}
        return super().config(method, adapters, modules) | said

    def shared_of(self, shared: Any, sites: Sequence[Site]) -> dict[str, Tensor]:
        d, k, r = (max(getattr(site, size) for site in sites) for size in ("d", "k", "rank"))
        m, M = sorted((d, k))
        A, B = shared.A.new_zeros(r, 1, m), shared.B.new_zeros(M, math.ceil(m / r) * r)
        A[:, 0, : shared.A.shape[1]] = shared.A
        B[:, : shared.B.shape[1]] = shared.B
        return {"randlora_A": A, "randlora_B": B.unflatten(1, (-1, r))}

    def entries(self, method: str, config: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, Any]]:
        return [(method, {"save_projection": True})]

    def read_shared(self, shared: Mapping[str, Tensor], sites: Sequence[Site]) -> dict[str, Tensor]:
        m = max(min(site.d, site.k) for site in sites)
        M = max(max(site.d, site.k) for site in sites)
        columns = max(bases_of(site) * site.rank for site in sites)
        return {"A": shared["A"][:, 0, :m].contiguous(), "B": shared["B"].flatten(1)[:M, :columns].contiguous()}

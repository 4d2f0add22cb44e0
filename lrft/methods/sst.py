"""SST, sparse spectral training. Zhao et al., 2024, arXiv 2405.15481. A reconstruction: the code could not be read.

    W = U diag(S) V',    U (d, m), S (m,), V (k, m), m = min(d, k), from the weight's singular vectors

All of S is trained; of U and V only r columns I at a time, the recipe's rank, drawn for `every` steps with
probabilities (1/m + S_i / sum S) / 2. Their gradients are G V_I and G' U_I, without the factor S_i that the product
rule gives, so that weak directions learn as fast as strong ones. After each step S is at least 0 and the columns have
length one; the moments of U and V begin anew with each draw, after a short warm-up; and after every m / r draws the
weight is decomposed again. Weight decay acts on S alone, as on all vectors not at all: columns of one length have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from lrft.adapters import svd
from lrft.adapters.adapter import Adapter, Site
from lrft.adapters.part import Method, Run
from lrft.model.send import send
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Sst(Method):
    """Trains all singular values of the weight, and a few singular vectors at a time, drawn anew now and then."""

    name: ClassVar[str] = "sst"
    kind: ClassVar[str] = "full-weight optimisation"
    paper: ClassVar[str] = "arXiv 2405.15481"
    equation: ClassVar[str] = "U diag(S) V': S, and columns I of U and V along G V_I and G' U_I"
    parameters: ClassVar[str] = "m (d + k + 1), m the smaller of d and k; r (d + k) + m at a time"
    exports: ClassVar[str] = "merged model only"
    evidence: ClassVar[str] = "reconstruction from the paper; gradients compared with autograd"
    learning_rate: ClassVar[float] = 2e-4
    rate_source: ClassVar[str] = "as LoRA: the best of both on a tiny task is the same"
    slots: ClassVar[tuple[str, ...]] = ("update", "init")
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "steps", "restart", "forward")
    quantization_conflict: ClassVar[str] = (
        "keeps the weight's full singular vectors, so quantising the base saves no memory"
    )

    every: Annotated[float, Field(gt=0)] = 200.0
    """Steps from one draw of columns to the next, or a share of the run when below 1."""
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps in which the learning rate rises again after a draw, but for the first."""

    @cached_property
    def drawn(self) -> dict[str, Tensor]:
        """I (r,), by site."""
        return {}

    def build(self, site: Site) -> Adapter:
        if site.rank > min(site.d, site.k):
            raise ValueError(f"a {site.d} x {site.k} layer has no {site.rank} singular vectors: lower the rank")
        return SstAdapter(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        adapter.set(W0)

    def rate(self, run: Run, site: str) -> float:
        number, since = divmod(run.step, run.steps(self.every))
        return min(1.0, (since + 1) / (self.warmup + 1)) if number else 1.0

    @torch.no_grad()
    def before_step(self, run: Run) -> None:
        number, since = divmod(run.step, run.steps(self.every))
        for name, adapter in spectral(run):
            begins = since == 0 and number > 0
            if begins and number % -(-len(adapter.S) // adapter.site.rank) == 0:
                adapter.set(adapter.product())
            if begins or name not in self.drawn:
                self.drawn[name] = draw(adapter.S, adapter.site.rank, seed_of(run.seed, name, number))
            if begins:
                run.forget(adapter.U)
                run.forget(adapter.V)
        for group in run.optimizer.param_groups if run.optimizer else ():
            if {name.rsplit(".", 1)[-1] for name in group.get("param_names", ())} == {"U", "V"}:
                group["weight_decay"] = 0.0

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for name, adapter in spectral(run):
            chosen = send(self.drawn[name], adapter.S.device)
            weights = torch.zeros_like(adapter.S)
            weights[chosen] = torch.where(adapter.S[chosen] > 0, 1 / adapter.S[chosen], 0.0)
            for p in (adapter.U, adapter.V):
                if p.grad is not None:
                    p.grad *= weights

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        for name, adapter in spectral(run):
            chosen = send(self.drawn[name], adapter.S.device)
            adapter.S.clamp_(min=0)
            for p in (adapter.U, adapter.V):
                p[:, chosen] = normalize(p[:, chosen], dim=0)

    def state(self) -> dict[str, Tensor]:
        return dict(self.drawn)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.drawn.update({name: tensor.clone() for name, tensor in state.items()})


def spectral(run: Run) -> list[tuple[str, SstAdapter]]:
    return [(name, adapter) for name, adapter in run.adapters.items() if isinstance(adapter, SstAdapter)]


def draw(S: Tensor, rank: int, seed: int) -> Tensor:
    """`rank` different columns, in order. On the CPU, whose random numbers no other device has."""
    chances = probabilities(S.double().clamp_min(0).cpu())
    return torch.multinomial(chances, rank, generator=torch.Generator().manual_seed(seed)).sort().values


def probabilities(S: Tensor) -> Tensor:
    return (1 / len(S) + S / S.sum().clamp_min(1e-30)) / 2


class SstAdapter(Adapter):
    """U (d, m) and V (k, m) with orthonormal columns and S (m,) in order, set from the weight."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        m = min(site.d, site.k)
        self.U = nn.Parameter(torch.zeros(site.d, m, dtype=site.dtype))
        self.S = nn.Parameter(torch.zeros(m, dtype=site.dtype))
        self.V = nn.Parameter(torch.zeros(site.k, m, dtype=site.dtype))

    def set(self, W: Tensor) -> None:
        for p, value in zip((self.U, self.S, self.V), svd.exact(W, len(self.S)), strict=True):
            p.copy_(value)

    def product(self) -> Tensor:
        return (self.U * self.S) @ self.V.T

    def weight(self, W0: Tensor) -> Tensor:
        return self.product()

    def forward(self, x: Tensor, base: Any) -> Tensor:
        y = linear(linear(self.cast(x), self.V.T) * self.S, self.U)
        y = y if torch.is_autocast_enabled(x.device.type) else y.to(x.dtype)
        return y if base.bias is None else (y + base.bias).to(y.dtype)

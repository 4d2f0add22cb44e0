"""SaRA. Hu et al., 2024, arXiv 2409.06633: trains the smallest entries of the weight, which matter least to it.

    W + V,    V zero but for the n entries of smallest |W|
    + strength |(W + V) o M|_*, of one layer drawn in each step; M is one at these entries and the norm the nuclear one

The paper's entries are those below one threshold for all layers, 2e-3; here a share of each layer, so that counts are
known before the weight is. Midway the entries that have grown beyond the largest of those that were chosen are frozen,
and the others' moments begin anew. The released memory-saving optimiser starts with the absolute values of the
entries, which flips the sign of half of them, and its step of the second choice updates nothing: neither is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import AdapterLinear, Delta, Site
from lrft.adapters.part import Method, Run
from lrft.model.linear import dense
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class Sara(Method):
    """Trains the entries of the weight that are nearest to zero, one by one."""

    name: ClassVar[str] = "sara"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2409.06633"
    equation: ClassVar[str] = "W + V, V zero but at the smallest |W|; loss + c |(W + V) at these entries|_*"
    parameters: ClassVar[str] = "density d k"
    exports: ClassVar[str] = "merged only"
    evidence: ClassVar[str] = "entries, second choice and penalty against the released code at the same threshold"
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "the released rule at its threshold: 1e-3 exp(-350 * 2e-3)"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    quantization_conflict: ClassVar[str] = "trains the entries of the weight near zero, which quantisation makes equal"

    density: Annotated[float, Field(gt=0, le=1)] = 0.05
    """Share of each weight's entries that are trained; the recipe's rank says nothing here. About that of the paper's
    threshold in Stable Diffusion 1.5."""
    strength: Annotated[float, Field(ge=0)] = 5e-4
    """Weight of the nuclear norm, c. The authors: 5e-4. It takes a full decomposition in each step; 0: none."""
    again: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the run after which entries are chosen among those that still are small; 1: never."""

    @cached_property
    def grown(self) -> dict[str, Tensor]:
        """By site, which entries (n,) are frozen since the second choice."""
        return {}

    def build(self, site: Site) -> Delta:
        return SaraAdapter(site, max(1, int(self.density * site.d * site.k)))

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        smallest = W0.abs().flatten().topk(len(adapter.v), largest=False, sorted=False).indices
        adapter.entries.copy_(smallest.sort().values)

    def before_step(self, run: Run) -> None:
        if self.again < 1 and run.step == max(1, round(self.again * run.total_steps)):
            for site, adapter in run.adapters.items():
                tensors = adapter.tensors()
                W = dense(layer(run, site).base).flatten()[tensors["entries"]]
                self.grown[site] = (W + tensors["v"].detach()).abs() > W.abs().max()
                run.forget(tensors["v"])

    def loss(self, run: Run) -> Tensor | None:
        if not self.strength:
            return None
        generator = torch.Generator().manual_seed(seed_of(run.seed, self.name, run.step))
        site = list(run.adapters)[int(torch.randint(len(run.adapters), (), generator=generator))]
        tensors = run.adapters[site].tensors()
        v, entries, W = tensors["v"], tensors["entries"], dense(layer(run, site).base)
        values = W.flatten()[entries].to(v.dtype) + v
        if site in self.grown:
            values = values.masked_fill(self.grown[site].to(v.device), 0)
        chosen = v.new_zeros(W.numel()).index_copy(0, entries, values).view(W.shape)
        return self.strength * torch.linalg.matrix_norm(chosen, ord="nuc")

    def after_backward(self, run: Run) -> None:
        for site, frozen in self.grown.items():
            gradient = run.adapters[site].tensors()["v"].grad
            if gradient is not None:
                gradient.masked_fill_(frozen.to(gradient.device), 0.0)

    def state(self) -> dict[str, Tensor]:
        return dict(self.grown)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.grown.update({site: frozen.clone() for site, frozen in state.items()})


def layer(run: Run, site: str) -> AdapterLinear:
    found = run.model.get_submodule(site)
    if not isinstance(found, AdapterLinear):
        raise TypeError(f"{site} has no adapter")
    return found


class SaraAdapter(Delta):
    """v (n,) zero, at `entries` (n,) of the weight, row by row, int64: these depend on the weight and are saved."""

    def __init__(self, site: Site, count: int) -> None:
        super().__init__(site)
        self.v = nn.Parameter(torch.zeros(count, dtype=site.dtype))
        self.entries = nn.Parameter(torch.arange(count), requires_grad=False)

    def delta_weight(self) -> Tensor:
        """Dense, made for each pass and not kept, as sltrain's."""
        d, k = self.site.d, self.site.k
        return self.v.new_zeros(d * k).index_copy(0, self.entries, self.v).view(d, k)

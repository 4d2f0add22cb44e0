"""SVFit. Sun et al., 2024, arXiv 2409.05926. No code is published.

The paper replaces W by a residual and trains the r leading singular values. Here W stays and z is what they change by,
    W_res + U diag(S + z) V' = W + U diag(z) V',
so that nothing is rounded at the start and weight decay pulls towards the base. z has no bound: the paper names none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gated import GatedPair
from lrft.adapters.part import Method
from lrft.adapters.svd import exact, leading


@dataclass(frozen=True)
class Svfit(Method):
    """Trains the weight's leading singular values; the singular vectors stay frozen."""

    name: ClassVar[str] = "svfit"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.05926"
    equation: ClassVar[str] = "W + U diag(z) V', U and V the r leading singular vectors of W"
    parameters: ClassVar[str] = "r"
    exports: ClassVar[str] = "PEFT LoRA of the same rank, or merged model"
    evidence: ClassVar[str] = (
        "dense reference of the abstract's formula; scaling factor and bounds on z are not published"
    )
    learning_rate: ClassVar[float] = 6e-3
    rate_source: ClassVar[str] = "docs/benchmark.md: thirty times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular values: lower rank {site.rank}")
        return trained_diagonal(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        decompose = exact if self.svd == "exact" else leading
        U, _, V = decompose(W0, adapter.site.rank)
        adapter.A.copy_(V.T)
        adapter.B.copy_(U)


def trained_diagonal(site: Site) -> GatedPair:
    """s B diag(gate) A, of which only the gate (r,) is trained, from zero; A (r, k) and B (d, r) are to be set."""
    adapter = GatedPair(site, trains_gate=True)
    adapter.A.requires_grad_(False)
    adapter.B.requires_grad_(False)
    return adapter

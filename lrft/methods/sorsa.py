"""SORSA. Cao, 2024, arXiv 2409.00055. The penalty follows the released code: a mean of norms that are not squared.

In that code the penalty's gradient is divided by the number of micro-batches, which was not meant, and not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.part import Method, Run
from lrft.adapters.svd import exact, leading


@dataclass(frozen=True)
class Sorsa(Method):
    """Trains the weight's leading singular values and vectors apart, and holds the vectors near orthonormal."""

    name: ClassVar[str] = "sorsa"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2409.00055"
    equation: ClassVar[str] = "W + B diag(sigma) A - its start U S V'; penalty mean |A A' - I|, |B' B - I|"
    parameters: ClassVar[str] = "r (d + k + 1)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = (
        "init and forward compared with the released formulas, in float64; the penalty's gradient with autograd"
    )
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "arXiv 2409.00055: 3e-5 for LLaMA-2-7B at rank 128, step size grows with rank"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    requires: ClassVar[tuple[str, ...]] = ("dropout=0",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)
    offset_from_init: ClassVar[bool] = True

    penalty: Annotated[float, Field(ge=0)] = 4e-4
    """Weight beside the token loss, times the run's highest learning rate: 4e-4 is a weight of 13.3 at the authors'
    rate of 3e-5. So the penalty's own step is the same whatever the rate."""
    squared: bool = False
    """Square the norms in the penalty: smooth, where the paper's has a slope of one length however near to zero."""
    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""

    def build(self, site: Site) -> Delta:
        most = min(site.d, site.k)
        if site.rank > most:
            raise ValueError(f"a {site.d} x {site.k} layer has {most} singular vectors: lower rank {site.rank}")
        return SorsaAdapter(site)

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        decompose = exact if self.svd == "exact" else leading
        U, S, V = decompose(W0, adapter.site.rank)
        adapter.A.copy_(V.T)
        adapter.sigma.copy_(S)
        adapter.B.copy_(U)

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        """Once a step and after clipping, as in the authors' trainer: the penalty is not clipped."""
        found = [m for adapter in run.adapters.values() for m in adapter.modules() if isinstance(m, SorsaAdapter)]
        factors = [(p, rows) for m in found if m.A.requires_grad for p, rows in ((m.A, m.A), (m.B, m.B.T))]
        for p, rows in factors:
            slope = self.slope(rows) * (self.penalty / run.learning_rate / len(factors))
            if p.grad is not None:
                p.grad += slope if rows is p else slope.T

    def slope(self, rows: Tensor) -> Tensor:
        """The gradient of |rows rows' - I|, squared or not, by rows (r, n)."""
        excess = rows @ rows.T
        excess.diagonal().sub_(1)
        if self.squared:
            return 4 * excess @ rows
        return 2 * excess @ rows / (excess.square().sum() + 1e-20).sqrt()


class SorsaAdapter(Delta):
    """A (r, k) and B (d, r) orthonormal and sigma (r,), set from the weight."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype))
        self.sigma = nn.Parameter(torch.zeros(site.rank, dtype=site.dtype))
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return (self.B * self.sigma) @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return linear(linear(x, self.A) * self.sigma, self.B)

    def factors(self) -> Factors:
        return Factors(self.B * self.sigma, self.A, 1.0)

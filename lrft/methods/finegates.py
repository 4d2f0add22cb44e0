"""FineGates. Svirsky et al., 2024, arXiv 2412.12951; formulas as in the code of the later paper, arXiv 2602.09169.

    W' = diag(rows) (W + dW) diag(columns)
    a gate:  clamp(tanh(z) + noise + 1/2, 0, 1),    noise of deviation 0.1 in each training pass, none otherwise
    + strength mean over layers of (|p(rows) - keep| + |p(columns) - keep|) / 2,    keep = 1 - sparsity,
    p(gates) = mean of Phi((tanh(z) + 1/2) / (1/2))

A row or column whose gate has come to zero can be cut out of the weight. Both gates act on the update too, as in the
released code for LoRA (which has the rows' gates in a wrong place there); a bias is left as it is, where the code gates
it, because nothing else here is written to. Its random bias for layers that have none is not kept, nor its weighting
by kurtosis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Delta
from lrft.adapters.part import Part, Run
from lrft.model.linear import product
from lrft.utils.seeds import seed_of

NOISE = 0.1
LEAST = 0.55  # tanh of it is above 1/2: every gate starts at one, even those far out of a million


@dataclass(frozen=True)
class FineGates(Part):
    """Trains a gate for each row and column of the adapted weight, and shuts some of them."""

    name: ClassVar[str] = "finegates"
    kind: ClassVar[str] = "sparsity"
    paper: ClassVar[str] = "arXiv 2412.12951"
    equation: ClassVar[str] = "diag(u) (W + dW) diag(v), u and v in [0, 1] with a target for how many are zero"
    parameters: ClassVar[str] = "those of the method + d + k"
    exports: ClassVar[str] = "merged only"
    evidence: ClassVar[str] = "gates, output and penalty against the released code"
    slots: ClassVar[tuple[str, ...]] = ("magnitude", "forward")
    requires: ClassVar[tuple[str, ...]] = ("delta",)
    may_not_move: ClassVar[tuple[str, ...]] = ("rows", "columns")

    sparsity: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """Share of the rows, and of the columns, to be shut. The authors' 0.4 for GLUE."""
    strength: Annotated[float, Field(ge=0)] = 50.0
    """Weight of the penalty. The authors: 50."""
    ratio: Annotated[float, Field(gt=0)] = 5.0
    """Learning rate of the gates over the others': the authors' gates have 1e-3."""
    gates_only: bool = False
    """Train no update beside the gates, as most of the paper does."""

    def lr_factors(self) -> dict[str, float]:
        return {"rows": self.ratio, "columns": self.ratio}

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta):
            raise TypeError(f"{adapter.site.name}: finegates needs a method that adds to the weight")
        if self.gates_only:
            adapter.requires_grad_(False)
        return GatedLayer(adapter)

    def loss(self, run: Run) -> Tensor | None:
        if not self.strength:
            return None
        own = [adapter.tensors() for adapter in run.adapters.values()]
        gaps = [
            (open_share(tensors[word]) - (1 - self.sparsity)).abs() for tensors in own for word in ("rows", "columns")
        ]
        return self.strength * torch.stack(gaps).mean()


def open_share(z: Tensor) -> Tensor:
    """The chance that a gate is open under noise of deviation 1/2, mean over the gates."""
    return torch.special.ndtr((z.tanh() + 0.5) / 0.5).mean()


class GatedLayer(Adapter):
    """rows (d,) and columns (k,) around one, of which the gates are made."""

    def __init__(self, inner: Delta) -> None:
        super().__init__(inner.site)
        site = inner.site
        self.inner = inner
        # A wrapper is made outside of the seeded build: the start depends on the site's name alone.
        generator = torch.Generator().manual_seed(seed_of(0, "finegates", site.name))
        self.rows, self.columns = (
            nn.Parameter((1 + 0.1 * torch.randn(size, dtype=site.dtype, generator=generator)).clamp(min=LEAST))
            for size in (site.d, site.k)
        )

    def gate(self, z: Tensor, *, noisy: bool = False) -> Tensor:
        mean = z.tanh()
        return ((mean + NOISE * torch.randn_like(mean) if noisy else mean) + 0.5).clamp(0, 1)

    def weight(self, W0: Tensor) -> Tensor:
        return self.gate(self.rows)[:, None] * (W0 + self.inner.delta_weight()) * self.gate(self.columns)

    def forward(self, x: Tensor, base: Any) -> Tensor:
        seen = x * self.gate(self.columns, noisy=self.training).to(x.dtype)
        straight = product(base, seen)
        update = self.inner.delta(self.cast(self.inner.drop(seen))).to(straight.dtype)
        out = self.gate(self.rows, noisy=self.training).to(straight.dtype) * (straight + update)
        return (out if base.bias is None else out + base.bias).to(straight.dtype)

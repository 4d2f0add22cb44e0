"""MonteCLoRA. arXiv 2411.04358; forms of the distributions and first values as in PEFT.

In training each row of A is displaced by normal noise, a mean of n draws with weights w, of a variance that is drawn:

    A' = A + e sum_i w_i N_i,    row j of N_i ~ N(0, v_j),    v_j = exp(2 u_j) c_j,  c_j ~ chi-squared(r)
    w = softmax(m + t z),  z ~ N(0, 1),    m = log a - mean log a,  t^2 = (1 - 2/n) / a + sum(1 / a) / n^2,  a = exp(q)

The mean of the draws is drawn at once: it is normal too, of deviation |w| sqrt(v_j). u (r,) and q (n,) are trained,
with the divergences of the three distributions from their priors as a loss. PEFT's divergence of the Dirichlet
distribution has a sign of its own; here it is that of the distributions. Afterwards it is the LoRA of A and B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Delta, Factors, PeftForm
from lrft.adapters.part import Part, Run
from lrft.model import fused_linear
from lrft.utils.seeds import seed_of

LEAST = 1e-3
"""of a variance"""


@dataclass(frozen=True)
class MonteClora(Part):
    """Displaces A in training by noise whose spread is learned: answers that are less sure of themselves."""

    name: ClassVar[str] = "monteclora"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2411.04358"
    equation: ClassVar[str] = "A + e sum_i w_i N(0, v) in training, w ~ Dirichlet, v ~ Wishart; A afterwards"
    parameters: ClassVar[str] = "those of the method, and r + n"
    evidence: ClassVar[str] = "spread of the draws compared with PEFT 0.21, divergences with torch.distributions"
    slots: ClassVar[tuple[str, ...]] = ("forward",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude", "optimizer", "restart")

    samples: Annotated[int, Field(ge=2)] = 8
    """n, draws of each pass."""
    noise: Annotated[float, Field(ge=0)] = 1e-4
    """e, factor of the noise."""
    prior: Annotated[float, Field(gt=0)] = 0.1
    """Concentration of the weights' prior, a Dirichlet distribution."""
    divergence: Annotated[float, Field(ge=0)] = 1e-5
    """Weight of the divergences in the loss: their mean over the layers."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta) or (factors := adapter.factors()) is None:
            raise ValueError("monteclora conflicts with a part that changes more than A and B (dora)")
        return SampledAdapter(adapter, len(factors.A), self.samples, self.noise)

    def loss(self, run: Run) -> Tensor | None:
        terms = [self.term(adapter) for adapter in run.adapters.values()]
        return self.divergence * torch.stack(terms).mean()

    def term(self, adapter: Any) -> Tensor:
        """The divergences of one layer's distributions from their priors."""
        r, variances = len(adapter.spread), (2 * adapter.spread).exp()
        wishart = 0.5 * r * (variances - variances.log() - 1).sum()
        drawn = (r * variances).clamp_min(LEAST)  # the mean of what is drawn
        normal = 0.5 * self.samples * (drawn - drawn.log() - 1).sum()
        return dirichlet_divergence(adapter.mix.exp(), self.prior) + wishart + normal


class SampledAdapter(Adapter):
    """`inner`, whose A is displaced in training. spread (r,) is u, mix (n,) is q: uniform between 0 and 1."""

    def __init__(self, inner: Delta, rank: int, samples: int, noise: float) -> None:
        super().__init__(inner.site)
        self.inner, self.noise = inner, noise
        generator = torch.Generator().manual_seed(seed_of(0, "monteclora", inner.site.name))
        first = torch.rand(rank + samples, generator=generator, dtype=inner.site.dtype)
        self.spread, self.mix = map(nn.Parameter, first.split([rank, samples]))

    def weight(self, W0: Tensor) -> Tensor:
        return self.inner.weight(W0)

    def peft(self) -> PeftForm | None:
        return self.inner.peft()

    def displaced(self) -> Factors:
        """The factors with the noise of one pass, from the global generator: recomputation restores it."""
        factors = self.inner.factors()
        if factors is None:
            raise TypeError(f"{self.site.name}: the update has no factors")
        B, A, s = factors
        r, a = len(self.spread), self.mix.exp()
        squares = torch.randn(r, r, dtype=A.dtype, device=A.device).square().sum(dim=1)
        variances = ((2 * self.spread).exp() * squares).clamp_min(LEAST)
        n = len(a)
        deviations = ((1 - 2 / n) / a + (1 / a).sum() / n**2).sqrt()
        weights = (self.mix - self.mix.mean() + deviations * torch.randn_like(a)).softmax(dim=0)
        noise = weights.norm() * variances.sqrt()[:, None] * torch.randn_like(A)
        return Factors(B, A + self.noise * noise, s)

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        if not self.training:
            found: Tensor = self.inner(x, base)
            return found
        dropped, (B, A, s) = self.inner.drop(x), self.displaced()
        if self.inner.is_fast(x, base):
            return fused_linear.linear_plus_pair(x, dropped, *fused_linear.parts_of(base), B, A, s)
        y = base(x)
        return y + (s * linear(linear(self.cast(dropped), A), B)).to(y.dtype)


def dirichlet_divergence(a: Tensor, prior: float) -> Tensor:
    """KL(Dirichlet(a) || Dirichlet(prior, ..., prior)) for a (n,)."""
    other = torch.full_like(a, prior)
    sizes = torch.lgamma(a.sum()) - torch.lgamma(other.sum()) - (torch.lgamma(a) - torch.lgamma(other)).sum()
    return sizes + ((a - other) * (torch.digamma(a) - torch.digamma(a.sum()))).sum()

"""LoRA Dropout. Lin et al., 2024, arXiv 2404.09610. No code of the authors is known.

    in training:   dW = s diag(m_out) B A diag(m_in),    m_in (k,), m_out (d,) ones and zeros, zero with probability p
    otherwise:     dW = (1 - p)^2 s B A, the mean over the masks

One pair of masks for each forward pass. Whole rows and columns of dW are zero together, a share 2p - p^2 of its
entries. (Dropout of `adapter.dropout` is another thing: of the inputs, of each token by itself.) With `ensemble` the
answers are, as in the paper, the mean of the probabilities of several masked models; merged and exported is the mean
update all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Adapter, Delta, Factors, PeftForm
from lrft.adapters.ensemble import by_copy
from lrft.adapters.part import Part
from lrft.model import fused_linear
from lrft.utils.seeds import seed_of


@dataclass(frozen=True)
class LoraDropout(Part):
    """Leaves out random inputs and outputs of the whole update in each forward pass of the training."""

    name: ClassVar[str] = "lora-dropout"
    kind: ClassVar[str] = "regulariser"
    paper: ClassVar[str] = "arXiv 2404.09610"
    equation: ClassVar[str] = "diag(m_out) dW diag(m_in); (1 - p)^2 dW after training"
    evidence: ClassVar[str] = (
        "update compared with the mean over sampled masks; the inference factor is a reconstruction"
    )
    learning_rate: ClassVar[float] = 5e-4
    rate_source: ClassVar[str] = "docs/benchmark.md: 3 times LoRA's best"
    slots: ClassVar[tuple[str, ...]] = ("forward",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    conflicts: ClassVar[tuple[str, ...]] = ("magnitude",)

    p: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Probability that an input, and that an output, is left out."""
    rescale: Literal["none", "inverted"] = "none"
    """none: the paper's formula, the update shrinks to its mean after training; inverted: it is divided by that
    factor in training instead, as in ordinary dropout."""

    ensemble: Annotated[int, Field(ge=0)] = 0
    """Masked models whose probabilities are averaged in `lrft eval` and validation, with masks of their own that stay;
    0: one model, the mean update."""

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        if not isinstance(adapter, Delta) or adapter.factors() is None:
            raise ValueError("lora-dropout conflicts with a part that changes more than A and B (dora)")
        return MaskedAdapter(adapter, 1 - self.p, inverted=self.rescale == "inverted", ensemble=self.ensemble)


class MaskedAdapter(Adapter):
    """Not a Delta: what reads the update of one, as DoRA does for its norms, would need to know the masks."""

    def __init__(self, inner: Delta, keep: float, *, inverted: bool, ensemble: int) -> None:
        super().__init__(inner.site)
        self.inner = inner
        self.ensemble = ensemble
        self.keep = keep
        self.in_training = keep**-2 if inverted else 1.0
        self.afterwards = 1.0 if inverted else keep**2

    def weight(self, W0: Tensor) -> Tensor:
        return W0 + self.afterwards * self.inner.delta_weight()

    @property
    def copies(self) -> int:
        return max(1, self.ensemble) if not self.training else 1

    def many(self, x: Tensor) -> Tensor:
        """What each masked model adds to its copy of the rows, (..., d) for x (..., k)."""
        B, A, s = self.factors()
        generator = torch.Generator().manual_seed(seed_of(0, self.site.name, "masks"))
        size = (self.ensemble, 1, self.site.k + self.site.d)
        masks = (torch.rand(size, generator=generator) < self.keep).to(x)
        m_in, m_out = masks.split([self.site.k, self.site.d], dim=-1)
        parts = linear(linear(by_copy(x, self.ensemble) * m_in, A), B) * m_out
        return (s * self.in_training * parts).view(*x.shape[:-1], self.site.d)

    def masked(self) -> Factors:
        """With the masks of one forward pass, from the global generator: recomputation restores it."""
        B, A, s = self.factors()
        m_out = torch.empty_like(B[:, :1]).bernoulli_(self.keep)
        m_in = torch.empty_like(A[:1]).bernoulli_(self.keep)
        return Factors(B * m_out, A * m_in, s * self.in_training)

    def factors(self) -> Factors:
        """Factors of the update without masks."""
        factors = self.inner.factors()
        if factors is None:
            raise TypeError(f"{self.site.name}: the update has no factors")
        return factors

    def forward(self, x: Tensor, base: nn.Module) -> Tensor:
        if self.ensemble and self.in_copies and not self.training:
            y = base(x)
            return y + self.many(self.cast(x)).to(y.dtype)
        if self.training:
            B, A, s = self.masked()
        else:
            B, A, s = self.factors()
            s *= self.afterwards
        if self.inner.is_fast(x, base):
            return fused_linear.linear_plus_pair(x, x, *fused_linear.parts_of(base), B, A, s)
        y = base(x)
        return y + (s * linear(linear(self.cast(x), A), B)).to(y.dtype)

    def peft(self) -> PeftForm:
        B, A, s = self.factors()
        return PeftForm(A, B, s * self.afterwards)

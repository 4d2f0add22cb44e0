"""C3A, circular convolution adaptation. Chen et al., 2024, arXiv 2407.19342; as in PEFT's `c3a`, by the authors.

dW is a grid of circulant blocks of side b, each stated by one kernel w[m, n] (b,):

    block (m, n) of dW: [t, u] = w[m, n, (u - t) mod b] / k

PEFT starts from random kernels, which change the model before the first step: here they start at zero, which is PEFT's
`init_weights=True`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class C3a(Method):
    """Circular convolutions between blocks of inputs and outputs: a full-rank update for few numbers."""

    name: ClassVar[str] = "c3a"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2407.19342"
    equation: ClassVar[str] = "W + [circulant(w_mn)] / k, blocks of b x b"
    parameters: ClassVar[str] = "d k / b"
    exports: ClassVar[str] = "PEFT C3A, or merged model"
    evidence: ClassVar[str] = "forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 0.1
    rate_source: ClassVar[str] = "PEFT's documentation"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "C3A"
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    block: Annotated[int, Field(ge=0)] = 0
    """b, which must divide the layer's inputs and outputs (PEFT: 256); 0 matches a LoRA's trainable parameters best."""

    @classmethod
    def in_peft(cls) -> C3aType:
        return C3aType("C3A", C3aAdapter, {"w": Named("c3a_kernel", "ijb")}, options={"block": "block_size"}, rank="")

    def build(self, site: Site) -> Delta:
        d, k, whole = site.d, site.k, math.gcd(site.d, site.k)
        if self.block and whole % self.block:
            smaller = max(b for b in divisors(whole) if b <= self.block)
            raise ValueError(
                f"c3a: block size {self.block} does not divide {d} outputs and {k} inputs: set block to {smaller}"
            )
        wanted = d * k / (site.rank * (d + k))
        return C3aAdapter(site, self.block or min(divisors(whole), key=lambda b: abs(math.log(b / wanted))))


def divisors(n: int) -> list[int]:
    """Ascending."""
    return [b for b in range(1, n + 1) if n % b == 0]


class C3aAdapter(Delta):
    """w (d/b, k/b, b) zero. Transforms need float32 or float64: the tensors' own type, whatever the model's."""

    def __init__(self, site: Site, side: int) -> None:
        super().__init__(site)
        self.w = nn.Parameter(torch.zeros(site.d // side, site.k // side, side, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        step = torch.arange(self.w.shape[2], device=self.w.device)
        blocks = self.w[:, :, (step - step[:, None]) % len(step)]  # (m, n, t, u)
        return blocks.transpose(1, 2).reshape(self.site.d, self.site.k) / self.site.k

    def delta(self, x: Tensor) -> Tensor:
        """Correlation with a kernel is a product of transforms."""
        n, side = self.w.shape[1:]
        seen = torch.fft.rfft(x.to(self.w.dtype).unflatten(-1, (n, side)))
        made = torch.einsum("...nf,mnf->...mf", seen, torch.fft.rfft(self.w).conj())
        return torch.fft.irfft(made, n=side).flatten(-2) / self.site.k


@dataclass(frozen=True)
class C3aType(PeftType):
    def config(self, method: Any, adapters: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
        """With the sides that were chosen for each layer."""
        sides = {name: adapter.w.shape[2] for name, adapter in adapters.items()}
        first = next(iter(sides.values()))
        others = {name: side for name, side in sides.items() if side != first}
        return super().config(method, adapters, modules) | {"block_size": first, "block_size_pattern": others}

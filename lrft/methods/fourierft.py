"""FourierFT. Gao et al., 2024, arXiv 2405.03003, section 3; positions and scaling as in PEFT's `fourierft`.

The update is the real part of the inverse transform of a spectrum with n entries c_l at positions (j_l, q_l):

    dW[o, i] = s / (d k) sum over l of c_l cos(2 pi (j_l o / d + q_l i / k))

The released code starts from c ~ N(0, 1), which changes the model before the first step: here c starts at zero, which
is PEFT's `init_weights=True`. (The released merge also has a factor of its own, 300, whatever s was trained.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType

SLOWER = 20
"""the time of an operation of a Fourier transform, over that of one of a matrix product; on a CPU"""


@dataclass(frozen=True)
class Fourierft(Method):
    """A few coefficients of the update's two-dimensional spectrum, at random positions; it has no rank."""

    name: ClassVar[str] = "fourierft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2405.03003"
    equation: ClassVar[str] = "W + s Re ifft2(C), C zero but for n entries"
    parameters: ClassVar[str] = "n, whatever the rank"
    exports: ClassVar[str] = "PEFT FOURIERFT, or merged model"
    evidence: ClassVar[str] = "positions, forward and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 0.03
    rate_source: ClassVar[str] = "docs/benchmark.md; the paper has about 0.05 for LLaMA-2-7B"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    peft_type: ClassVar[str] = "FOURIERFT"
    provides: ClassVar[tuple[str, ...]] = ("delta",)

    frequencies: Annotated[int, Field(ge=1)] = 1000
    """n, trainable parameters per layer. Needs a learning rate some hundred times LoRA's."""
    scaling: float = 150.0
    """s; the authors take 300 for LLaMA-2-7B and 29 to 151 on GLUE."""
    positions_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 777
    """Seed of the positions, shared by all layers of one shape."""

    @classmethod
    def in_peft(cls) -> PeftType:
        return PeftType(
            "FOURIERFT",
            FourierftAdapter,
            {"c": Named("fourierft_spectrum", "n")},
            options={
                "frequencies": "n_frequency",
                "scaling": "scaling",
                "positions_seed": "random_loc_seed",
            },
            rank="",
            conv1d=True,
        )

    def build(self, site: Site) -> Delta:
        if self.frequencies > site.d * site.k:
            raise ValueError(
                f"fourierft's {self.frequencies} frequencies are more than the {site.d} x {site.k} = {site.d * site.k} "
                f"of the layer: set frequencies to fewer"
            )
        shape = (site.d, site.k)
        if shape not in self.known:
            self.known[shape] = positions(*shape, self.frequencies, self.positions_seed)
        return FourierftAdapter(site, self.known[shape], self.scaling)

    @cached_property
    def known(self) -> dict[tuple[int, int], Tensor]:
        """By shape of a layer: a permutation of a large one takes a second."""
        return {}


def positions(d: int, k: int, n: int, seed: int) -> Tensor:
    """n different entries of a (d, k) matrix, row by row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(d * k, generator=generator, device="cpu")[:n].clone()


class FourierftAdapter(Delta):
    """c (n,) zero. Transforms need float32 or float64: the tensors' own type, whatever the model's."""

    entries: Tensor

    def __init__(self, site: Site, entries: Tensor, scaling: float) -> None:
        super().__init__(site)
        self.scaling = scaling
        self.c = nn.Parameter(torch.zeros(len(entries), dtype=site.dtype))
        self.register_buffer("entries", entries, persistent=False)

    def delta_weight(self) -> Tensor:
        d, k = self.site.d, self.site.k
        spectrum = self.c.new_zeros(d * k).index_copy(0, self.entries, self.c)
        return self.scaling * torch.fft.ifft2(spectrum.view(d, k)).real

    def sums_from(self) -> float:
        """By time: 5 n log2 n operations for a transform of n numbers, each `SLOWER` than those of a product, 2 d k for
        a vector."""
        d, k = self.site.d, self.site.k
        own = 4 * SLOWER * (5 * (k * math.log2(k) + d * math.log2(d)) + 8 * len(self.c))
        saved = own - 2 * d * k
        return 3 * SLOWER * 5 * d * k * math.log2(d * k) / saved if saved > 0 else math.inf

    def delta(self, x: Tensor) -> Tensor:
        """Transform the input, let each coefficient carry one frequency over, transform back."""
        d, k = self.site.d, self.site.k
        seen = torch.fft.ifft(x.to(self.c.dtype))
        carried = seen.index_select(-1, self.entries % k) * self.c
        spectrum = seen.new_zeros(*x.shape[:-1], d).index_add(-1, self.entries // k, carried)
        return self.scaling * torch.fft.ifft(spectrum).real

"""WaveFT, a few coefficients of the update's wavelet transform. Bilican et al., 2025, arXiv 2505.12532; positions,
bands and scaling as in PEFT, for the first wavelet of Daubechies (Haar).

    dW = s H(C),    C zero but for n entries at random positions

Of a 2 x 2 block of dW, C has the mean in its top left quarter, and differences along columns, rows and both in the
others. A side that is odd is filled up by one and cut again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Site
from lrft.adapters.part import Method
from lrft.adapters.peft_type import Named, PeftType


@dataclass(frozen=True)
class Waveft(Method):
    """A few coefficients of the update's wavelet transform, at random positions; it has no rank."""

    name: ClassVar[str] = "waveft"
    kind: ClassVar[str] = "parametrization"
    paper: ClassVar[str] = "arXiv 2505.12532"
    equation: ClassVar[str] = "W + s H(C), H the inverse Haar transform, C zero but for n entries"
    parameters: ClassVar[str] = "n, whatever the rank"
    exports: ClassVar[str] = "PEFT WAVEFT, or merged model"
    evidence: ClassVar[str] = "positions, forward, gradients and merge compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 3e-3
    rate_source: ClassVar[str] = "ours: s times the rate is that of a full update's entries"
    slots: ClassVar[tuple[str, ...]] = ("update",)
    provides: ClassVar[tuple[str, ...]] = ("delta",)
    peft_type: ClassVar[str] = "WAVEFT"

    n_frequency: Annotated[int, Field(ge=1)] = 2592
    """n, trainable parameters per layer."""
    scaling: float = 25.0
    """s."""
    random_loc_seed: Annotated[int, Field(ge=0, lt=9223372036854775808)] = 777
    """Seed of the positions, shared by all layers of one shape."""
    use_idwt: bool = True
    """false leaves the transform out: single entries of the weight, as in shira."""

    @classmethod
    def in_peft(cls) -> PeftType:
        words = ("n_frequency", "scaling", "random_loc_seed", "use_idwt")
        return PeftType(
            "WAVEFT",
            WaveftAdapter,
            {"c": Named("waveft_spectrum", "n")},
            options={word: word for word in words},
            fixed={"wavelet_family": ("db1",), "proportional_parameters": (False,)},
            rank="",
        )

    def build(self, site: Site) -> Delta:
        if self.n_frequency > site.d * site.k:
            raise ValueError(
                f"waveft's {self.n_frequency} coefficients are more than the {site.d} x {site.k} = {site.d * site.k} "
                f"of the layer: set n_frequency to fewer"
            )
        shape = (site.d, site.k)
        if shape not in self.known:
            generator = torch.Generator().manual_seed(self.random_loc_seed)
            drawn = torch.randperm(site.d * site.k, generator=generator, device="cpu")
            self.known[shape] = drawn[: self.n_frequency].clone()
        return WaveftAdapter(site, self.known[shape], self.scaling, self.use_idwt)

    @cached_property
    def known(self) -> dict[tuple[int, int], Tensor]:
        """By shape of a layer: a permutation of a large one takes a second."""
        return {}


class WaveftAdapter(Delta):
    """c (n,) zero."""

    entries: Tensor

    def __init__(self, site: Site, entries: Tensor, scaling: float, transformed: bool) -> None:
        super().__init__(site)
        self.scaling, self.transformed = scaling, transformed
        self.c = nn.Parameter(torch.zeros(len(entries), dtype=site.dtype))
        self.register_buffer("entries", entries, persistent=False)

    def delta_weight(self) -> Tensor:
        d, k = self.site.d, self.site.k
        rows, columns = (d + d % 2, k + k % 2) if self.transformed else (d, k)
        places = self.entries // k * columns + self.entries % k
        C = self.c.new_zeros(rows * columns).index_copy(0, places, self.c).view(rows, columns)
        return self.scaling * (haar(C)[:d, :k] if self.transformed else C)


def haar(C: Tensor) -> Tensor:
    """(d, k), both even, from the four quarters of C: mean, differences of rows, of columns, and of both."""
    (mean, rows), (columns, both) = (half.chunk(2, dim=1) for half in C.chunk(2))
    above = torch.stack([mean + rows + columns + both, mean + rows - columns - both], dim=2)
    below = torch.stack([mean - rows + columns - both, mean - rows - columns + both], dim=2)
    return torch.stack([above.flatten(1), below.flatten(1)], dim=1).flatten(0, 1) / 2

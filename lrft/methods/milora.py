"""MiLoRA. Wang et al., 2024, arXiv 2406.09044. The released code of the decomposition was not to be had.

The factor s is divided out, and singular values split, as in PiSSA. Dropout acts on the update alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.part import Part


@dataclass(frozen=True)
class Milora(Part):
    """Starts A and B from the smallest singular values of the weight; the update is counted from that start."""

    name: ClassVar[str] = "milora"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2406.09044"
    equation: ClassVar[str] = "A0 = sqrt(S/s) V', B0 = U sqrt(S/s), the last r; W + s (B A - B0 A0)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "reconstruction"
    learning_rate: ClassVar[float] = 3e-4
    rate_source: ClassVar[str] = "arXiv 2406.09044, LLaMA-2-7B"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        U, S, V = svd.trailing(W0, adapter.site.rank)
        root = (S / adapter.site.scale).sqrt()
        # Where W has no such direction, both sides would be zero and never move: A takes v at unit length, B zero.
        none = torch.finfo(W0.dtype).eps * W0.norm() >= S
        adapter.A.copy_(root.masked_fill(none, 1.0)[:, None] * V.T)
        adapter.B.copy_(U * root.masked_fill(none, 0.0))

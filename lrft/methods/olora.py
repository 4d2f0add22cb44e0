"""OLoRA. Büyükakyüz, 2024, arXiv 2406.01775. The factor s stays in the start, as in the paper and in PEFT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lrft.adapters import svd
from lrft.adapters.adapter import Site
from lrft.adapters.part import Part


@dataclass(frozen=True)
class Olora(Part):
    """Starts A and B from the QR decomposition of the weight, B orthonormal; the update is counted from that start."""

    name: ClassVar[str] = "olora"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2406.01775"
    equation: ClassVar[str] = "W = Q R, A0 = R[:r], B0 = Q[:, :r]; W + s (B A - B0 A0)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "init and forward compared with PEFT 0.21"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        r = adapter.site.rank
        svd.refuse_beyond(W0, r)
        # The first r columns of Q depend on the first r columns of W alone; R = Q' W is zero below the diagonal.
        Q = torch.linalg.qr(W0[:, :r]).Q
        adapter.B.copy_(Q)
        adapter.A.copy_((Q.T @ W0).triu())

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        largest = max(site.scale for site in sites)
        if largest <= 2:
            return []
        return [
            f"olora: the factor multiplies the part of the weight that is trained, {largest:g} here; "
            "above 2 that part and the rest are each larger than the weight itself. Consider alpha = r."
        ]

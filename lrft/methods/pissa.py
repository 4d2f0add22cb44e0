"""PiSSA. Meng et al., 2024, arXiv 2404.02948, section 3. The factor s is divided out as in the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Site
from lrft.adapters.part import Part
from lrft.adapters.svd import exact, leading


@dataclass(frozen=True)
class Pissa(Part):
    """Starts A and B from the leading singular vectors of the weight; the update is counted from that start."""

    name: ClassVar[str] = "pissa"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2404.02948"
    equation: ClassVar[str] = "A0 = sqrt(S/s) V', B0 = U sqrt(S/s); W + s (B A - B0 A0)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the original base, or merged model"
    evidence: ClassVar[str] = "init and converted file compared with PEFT 0.21"
    learning_rate: ClassVar[float] = 5e-5
    rate_source: ClassVar[str] = "arXiv 2404.02948: 2e-5 for LLaMA-2-7B at rank 128, step size grows with rank"
    slots: ClassVar[tuple[str, ...]] = ("init",)
    requires: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    offset_from_init: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: within 2 % of the leading energy; exact: the full decomposition, slow for large layers."""
    iterations: Annotated[int, Field(ge=0)] = 6
    """Iterations of the randomized SVD; each makes two passes over the weight."""

    def initialize(self, adapter: Any, W0: Tensor) -> None:
        r, scale = adapter.site.rank, adapter.site.scale
        U, S, V = exact(W0, r) if self.svd == "exact" else leading(W0, r, iterations=self.iterations)
        root = (S / scale).sqrt()
        adapter.A.copy_(root[:, None] * V.T)
        adapter.B.copy_(U * root)

    def advice(self, sites: Sequence[Site], offset_from_init: bool) -> list[str]:
        scales = {site.scale for site in sites}
        if scales == {1.0}:
            return []
        return [
            "pissa: with this init the scaling factor only multiplies the learning rate by its square root; "
            "the paper uses alpha = r."
        ]

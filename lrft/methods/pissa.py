"""PiSSA. Meng et al., 2024, arXiv 2404.02948, section 3. The factor s is divided out as in the authors' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from lrft.core.adapter import Site
from lrft.core.part import Part


@dataclass(frozen=True)
class Pissa(Part):
    """Starts A and B from the leading singular vectors of the weight; the update is counted from that start."""

    name: ClassVar[str] = "pissa"
    kind: ClassVar[str] = "initialisation"
    paper: ClassVar[str] = "arXiv 2404.02948"
    equation: ClassVar[str] = "A0 = sqrt(S/s) V', B0 = U sqrt(S/s); W + s (B A - B0 A0)"
    exports: ClassVar[str] = "PEFT LoRA of rank 2r on the untouched base, or merged"
    evidence: ClassVar[str] = "first values and converted file against PEFT 0.21"
    fills: ClassVar[tuple[str, ...]] = ("start",)
    needs: ClassVar[tuple[str, ...]] = ("pair", "dropout=0")
    anchored: ClassVar[bool] = True
    natural_scale: ClassVar[float | None] = 1.0

    svd: Literal["randomized", "exact"] = "randomized"
    """randomized: subspace iteration with oversampling; exact: the full decomposition, slow for large layers."""
    iterations: Annotated[int, Field(ge=0)] = 16
    """Power iterations of the randomized decomposition."""

    def start(self, adapter: Any, W0: Tensor) -> None:
        r, scale = adapter.site.rank, adapter.site.scale
        if r > min(W0.shape):
            raise ValueError(
                f"rank {r} is larger than the layer's smaller side, {min(W0.shape)}: pissa has no more vectors"
            )
        U, S, V = self.leading(W0, r)
        root = (S / scale).sqrt()
        adapter.A.copy_(root[:, None] * V.T)
        adapter.B.copy_(U * root)

    def leading(self, W: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """The r leading singular triplets of W (d, k): U (d, r), S (r,), V (k, r)."""
        oversampled = r + max(8, r // 2)
        # Without oversampling a flat spectrum is missed by tens of percent; near full size the exact way is as fast.
        if self.svd == "exact" or oversampled >= min(W.shape):
            U, S, Vh = torch.linalg.svd(W, full_matrices=False)
            return U[:, :r], S[:r], Vh[:r].T
        U, S, V = torch.svd_lowrank(W, q=oversampled, niter=self.iterations)
        return U[:, :r], S[:r], V[:, :r]

    def advice(self, sites: Sequence[Site], anchored: bool) -> list[str]:
        scales = {site.scale for site in sites}
        if scales == {1.0}:
            return []
        return [
            "pissa: with this start the factor only multiplies the learning rate by its square root; "
            "the paper has alpha = r."
        ]

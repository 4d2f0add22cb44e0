"""FedSVD. Lee et al., 2025, arXiv 2505.12805: its factorisation, in an ordinary run. Clients and noise are left out.

The released code decomposes the dense product; here the r x r core between two QR decompositions, which is the same.
What becomes of Adam's moments is not in the paper, whose clients begin anew each round: they are set to zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lrft.adapters.adapter import Adapter
from lrft.adapters.part import Part, Run


@dataclass(frozen=True)
class FedSvd(Part):
    """Trains B alone, and every few steps writes B A anew by its singular vectors: the update stays what it is."""

    name: ClassVar[str] = "fedsvd"
    kind: ClassVar[str] = "restart"
    paper: ClassVar[str] = "arXiv 2505.12805"
    equation: ClassVar[str] = "B A = U S V': A = V', B = U S; A is not trained"
    evidence: ClassVar[str] = "index formulas of the released code; the moments are a reconstruction"
    slots: ClassVar[tuple[str, ...]] = ("pair-rates",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    may_not_move: ClassVar[tuple[str, ...]] = ("A",)

    every: Annotated[float, Field(gt=0)] = 10.0
    """Steps from one factorisation to the next, or a share of the run when below 1. The authors' rounds have 10."""
    train_A: bool = False
    """Train A as well, which the paper does not."""

    def lr_factors(self) -> dict[str, float]:
        return {} if self.train_A else {"A": 0.0}

    def wrap(self, adapter: Adapter, W0: Tensor | None) -> Adapter:
        site = adapter.site
        if site.rank > min(site.d, site.k):
            raise ValueError(f"a {site.d} x {site.k} layer has no {site.rank} singular vectors: lower the rank")
        return adapter

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        every = run.steps(self.every)
        if (run.step + 1) % every == 0:
            module: Any
            for adapter in run.adapters.values():
                for module in adapter.modules():
                    if getattr(getattr(module, "A", None), "requires_grad", False):
                        factorise(module)
                        run.forget(module.A)
                        run.forget(module.B)


def factorise(pair: Any) -> None:
    """A <- V', B <- U S for B A = U S V'. In float64; of two signs of a direction, the one where V sums above zero."""
    left, R_left = torch.linalg.qr(pair.B.double())
    right, R_right = torch.linalg.qr(pair.A.double().T)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T)
    rows = Vh @ right.T
    signs = torch.where(rows.sum(dim=1) < 0, -1.0, 1.0)
    pair.A.copy_(signs[:, None] * rows)
    pair.B.copy_(left @ (U * S * signs))

"""FedSVD. Lee et al., 2025, arXiv 2505.12805: its factorisation, in an ordinary run. Clients and noise are left out.
With A trained and the singular values in both factors it is the weight refactorisation of arXiv 2505.22922.

The released code decomposes the dense product; here the r x r core between two QR decompositions, which is the same.
What becomes of Adam's moments is not in the paper, whose clients begin anew each round: they are set to zero or mapped.

With A = T A_new a gradient of B is G A' = (G A_new') T', so the mean of the new B's gradients is M T'^-1, and that of
A's T' M. For the mean squares there is no such map: they take the squares of the same matrix, as if a matrix's entries
were independent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

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
    evidence: ClassVar[str] = (
        "factors compared with the SVD of the dense product, in float64; handling of moments is a reconstruction"
    )
    needs_adamw: ClassVar[str] = "moves Adam's running means along"
    slots: ClassVar[tuple[str, ...]] = ("pair-rates",)
    requires: ClassVar[tuple[str, ...]] = ("pair",)
    may_not_move: ClassVar[tuple[str, ...]] = ("A",)

    every: Annotated[float, Field(gt=0)] = 10.0
    """Steps between factorisations, or a fraction of the run when below 1. The authors' rounds have 10."""
    train_A: bool = False
    """Also train A, unlike the paper."""
    split: Literal["B", "both"] = "B"
    """Where the singular values go: into B, or their square roots into B and into A."""
    moments: Literal["forget", "map", "momentum"] = "forget"
    """Adam's moments after a factorisation: reset, with their step count; mapped to the new pair; or only the first
    one, the momentum, reset."""

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
                        T = factorise(module)
                        if self.split == "both":
                            T = T / balance(module)
                        if self.moments == "map":
                            carry_over(run.optimizer.state, module, T)
                        for p in (module.A, module.B):
                            if self.moments == "forget":
                                run.forget(p)
                            elif self.moments == "momentum" and "exp_avg" in run.optimizer.state.get(p, {}):
                                run.optimizer.state[p]["exp_avg"].zero_()


def carry_over(state: Mapping[Tensor, dict[str, Tensor]], pair: Any, T: Tensor) -> None:
    """Adam's moments of a pair (A, B) for the pair (A_new, B T) with A = T A_new, T (r, r)."""
    of_B = torch.linalg.pinv(T).T
    for name, of_A, on_B in (("exp_avg", T.T, of_B), ("exp_avg_sq", T.T.square(), of_B.square())):
        for p, moved in ((pair.A, lambda M, of_A=of_A: of_A @ M), (pair.B, lambda M, on_B=on_B: M @ on_B)):
            if name in state.get(p, {}):
                state[p][name].copy_(moved(state[p][name].double()))


def factorise(pair: Any) -> Tensor:
    """A <- V', B <- U S for B A = U S V'; returned is T (r, r), A = T V'.

    In float64; of two signs of a direction, the one where V sums above zero.
    """
    left, R_left = torch.linalg.qr(pair.B.double())
    right, R_right = torch.linalg.qr(pair.A.double().T)
    U, S, Vh = torch.linalg.svd(R_left @ R_right.T)
    rows = Vh @ right.T
    signs = torch.where(rows.sum(dim=1) < 0, -1.0, 1.0)
    rows = signs[:, None] * rows
    T = pair.A.double() @ rows.T
    pair.A.copy_(rows)
    pair.B.copy_(left @ (U * S * signs))
    return T


def balance(pair: Any) -> Tensor:
    """A <- S^(1/2) V', B <- U S^(1/2) of a factorised pair; returned are the roots (r,).

    A direction of no length keeps its row of A: with both factors zero it would never learn again.
    """
    lengths = pair.B.norm(dim=0).double()
    roots = torch.where(lengths > 1e-12 * lengths.max(), lengths, 1.0).sqrt()
    pair.A.copy_(roots[:, None] * pair.A)
    pair.B.copy_(pair.B / roots)
    return roots

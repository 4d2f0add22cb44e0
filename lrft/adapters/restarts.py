"""Restarts without modifying the base: earlier updates are frozen and kept, and a fresh update is trained.

    W0 + dW_1 + ... + dW_n + dW

Merging into the weight, as the papers do, rounds each time to the weight's dtype and makes the base another model. Kept
apart the sum is exact, a checkpoint stays small, and updates with factors remain one LoRA, of rank (n + 1) r.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Delta, Factors, frozen_copy


class Folded(Delta):
    """`inner` is trained; `links` (as many as there will be restarts) are frozen, the first `folds` of them in use."""

    def __init__(self, inner: Delta, links: int) -> None:
        super().__init__(inner.site)
        inner.refuse_copies()
        self.inner = inner
        self.links = nn.ModuleList(frozen_copy(inner) for _ in range(links))
        self.folds = nn.Parameter(torch.zeros((), dtype=inner.site.dtype), requires_grad=False)
        self.known: tuple[int, int] = (self.folds._version, 0)

    def terms(self) -> list[Delta]:
        """The updates that are summed."""
        if self.known[0] != self.folds._version:  # reading a tensor waits for a GPU: only when it was written to
            self.known = self.folds._version, int(self.folds)
        used = list(self.links)[: self.known[1]]
        return [*used, self.inner]  # type: ignore[list-item]

    def delta_weight(self) -> Tensor:
        return torch.stack([term.delta_weight() for term in self.terms()]).sum(dim=0)

    def delta(self, x: Tensor) -> Tensor:
        first, *others = [term.delta(x) for term in self.terms()]
        for other in others:
            first = first + other
        return first

    def factors(self) -> Factors | None:
        found = [term.factors() for term in self.terms()]
        factors = [f for f in found if f is not None]
        if len(factors) < len(found):
            return None
        # One scale for all: they were built for the same site.
        return Factors(torch.cat([f.B for f in factors], 1), torch.cat([f.A for f in factors]), factors[0].scale)

    @torch.no_grad()
    def fold(self, fresh: Delta) -> None:
        """Freeze what `inner` has learnt, and give it the values of `fresh`. The sum stays what it was."""
        used = len(self.terms()) - 1
        link: Delta = self.links[used]  # type: ignore[assignment]
        link.load(self.inner.tensors())
        self.inner.load(fresh.tensors())
        self.folds.add_(1)
        self.known = self.folds._version, used + 1

"""Gated LoRA, dW = s B diag(g) A: one gate per rank-one component, and helpers of rank-adaptive methods.

What decides on ranks during a run needs no more than this: tensors keep their shapes, so that a distributed wrapper
and an optimiser stay as they are; a component is taken out by its gate. Methods differ in who sets the gates: the
optimiser, a threshold, a budget.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.adapters.adapter import Delta, Factors, PeftForm, Site

# Of the moving averages of sensitivities, in AdaLoRA and those that followed it.
BETA = 0.85


def built(rank: int, over: float) -> int:
    """Components that are built where the recipe's rank is to be the number in use."""
    return math.floor(over * rank + 0.5)


def asked(built: int, over: float) -> int:
    """The recipe's rank again: `built` is within a half of its multiple, and `over` is at least 1."""
    return math.floor(built / over + 0.5)


def smoothed(memory: dict[str, Tensor], name: str, now: Tensor, beta1: float = BETA, beta2: float = BETA) -> Tensor:
    """M1 * M2 of what is `now`: the moving average M1 and that of the distance from it, kept in `memory`."""
    mean, spread = (memory.get(f"{kind}/{name}", torch.zeros_like(now)).to(now.device) for kind in ("mean", "spread"))
    mean = mean.lerp(now, 1 - beta1)
    spread = spread.lerp((now - mean).abs(), 1 - beta2)
    memory[f"mean/{name}"], memory[f"spread/{name}"] = mean, spread
    return mean * spread


class GatedPair(Delta):
    """A (r, k), gate (r,), B (d, r), all zero: the method that builds it sets its start."""

    def __init__(self, site: Site, *, trains_gate: bool) -> None:
        super().__init__(site)
        self.A = nn.Parameter(torch.zeros(site.rank, site.k, dtype=site.dtype))
        self.gate = nn.Parameter(torch.zeros(site.rank, dtype=site.dtype), requires_grad=trains_gate)
        self.B = nn.Parameter(torch.zeros(site.d, site.rank, dtype=site.dtype))

    def delta_weight(self) -> Tensor:
        return self.site.scale * (self.B * self.gate) @ self.A

    def delta(self, x: Tensor) -> Tensor:
        return self.site.scale * linear(linear(x, self.A) * self.gate, self.B)

    def factors(self) -> Factors:
        return Factors(self.B * self.gate, self.A, self.site.scale)

    def peft(self) -> PeftForm:
        """Only the components whose gate is open; one at least, because PEFT knows no rank of zero."""
        kept = self.gate.detach().nonzero().flatten()
        kept = kept if len(kept) else torch.zeros(1, dtype=torch.long, device=self.gate.device)
        return PeftForm(self.A[kept], (self.B * self.gate)[:, kept], self.site.scale)

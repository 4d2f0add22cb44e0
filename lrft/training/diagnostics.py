"""Adapter diagnostics for the log: gradient norms, relative update norms, and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.adapter import Adapter, Delta
from lrft.adapters.attached import Attached
from lrft.model import linear
from lrft.model.experts import word_of

# An update as large as the weight itself has replaced what the base had learnt.
LARGEST_UPDATE = 1.0


def gradient_norms(gradients: Iterable[tuple[str, Tensor]], scaled: float = 1.0) -> dict[str, float]:
    """Norm of the gradient by role, the last word of a tensor's name: {"A": ..., "B": ...}.

    scaled: the loss scale that is still in the gradients.
    """
    squares = summed((name, gradient.double().square().sum()) for name, gradient in gradients)
    return {role: math.sqrt(square) / scaled for role, square in squares.items()}


def summed(figures: Iterable[tuple[str, Tensor]]) -> dict[str, float]:
    """Figures of shape () added up by the last words of their names, and read at once: each read makes a GPU wait."""
    sums: dict[str, Tensor] = {}
    for name, figure in figures:
        word = name.rsplit(".", 1)[-1]
        sums[word] = sums[word] + figure if word in sums else figure
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}


@torch.no_grad()
def weight_squares(attached: Attached) -> dict[str, float]:
    """Squared Frobenius norm of the frozen weights, by the layers' last words. Reads all of them: once per run."""
    layers = attached.layers().items()
    return summed(
        (word_of(name), torch.linalg.vector_norm(linear.dense(layer.base)).double().square()) for name, layer in layers
    )


@torch.no_grad()
def update_shares(attached: Attached, weights: Mapping[str, float]) -> dict[str, float]:
    """Norm of the update over the norm of the weight, by the layers' last words: {"q_proj": 0.0031, ...}.

    Frobenius norms, over all layers of that name together; layers that have no weight to state are left out.
    weights: from `weight_squares`.
    """
    mergeable = ((name, layer) for name, layer in attached.layers().items() if layer.adapter.mergeable)
    updates = summed((word_of(name), squared_update(layer.adapter, layer.base)) for name, layer in mergeable)
    return {group: math.sqrt(updates[group] / weights[group]) if weights[group] else math.inf for group in updates}


def squared_update(adapter: Adapter, base: nn.Module) -> Tensor:
    """Squared Frobenius norm of the dense update of one layer, float64, shape ()."""
    factors = adapter.factors() if isinstance(adapter, Delta) else None
    if factors is not None:  # |s B A|^2 = s^2 sum (B'B * A A'): r x r, never (d, k)
        B, A = factors.B.double(), factors.A.double()
        return (factors.scale**2 * ((B.T @ B) * (A @ A.T)).sum()).clamp_min(0.0)
    if isinstance(adapter, Delta):
        return adapter.delta_weight().double().square().sum()
    W0 = linear.dense(base).to(adapter.site.dtype)
    return (adapter.weight(W0) - W0).double().square().sum()


class AdapterHealth:
    """Diagnostics of the adapters between logged steps."""

    def __init__(self, attached: Attached) -> None:
        self.attached = attached
        self.shares: dict[str, float] = {}
        """relative update norm at the last log, by layer"""

    @cached_property
    def weights(self) -> dict[str, float]:
        """Squared norms of the frozen weights, by layer: read at the first log."""
        return weight_squares(self.attached)

    def look(self, gradients: Mapping[str, float]) -> tuple[dict[str, Any], list[str]]:
        """({"gradient": norm by role before clipping, "update": update over weight by layer}, warnings)."""
        shares = update_shares(self.attached, self.weights)
        found = warnings(self.shares, shares)
        self.shares = shares
        return {"gradient": dict(gradients), "update": shares}, found


def warnings(before: Mapping[str, float], now: Mapping[str, float]) -> list[str]:
    """Warnings from two consecutive logs of `update_shares`."""
    said = []
    for group, share in now.items():
        if not math.isfinite(share):
            said.append(f"the update of {group} is not finite")
        elif share > LARGEST_UPDATE:
            said.append(
                f"the update of {group} is larger than its weight: lower the learning rate or the scaling factor"
            )
        elif before.get(group) == share:
            said.append(f"the adapters of {group} have not moved since the last log: is the learning rate too small?")
    return said

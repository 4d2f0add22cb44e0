"""Adapter diagnostics for the log: gradient norms, relative update norms, and warnings."""

from __future__ import annotations

import math
from collections import defaultdict
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
    squares: dict[str, float] = defaultdict(float)
    for name, gradient in gradients:
        squares[name.rsplit(".", 1)[-1]] += gradient.double().square().sum().item()
    return {role: math.sqrt(square) / scaled for role, square in squares.items()}


@torch.no_grad()
def weight_squares(attached: Attached) -> dict[str, float]:
    """Squared Frobenius norm of the frozen weights, by the layers' last words. Reads all of them: once per run."""
    weights: dict[str, float] = defaultdict(float)
    for name, layer in attached.layers().items():
        weights[word_of(name)] += torch.linalg.vector_norm(linear.dense(layer.base)).item() ** 2
    return dict(weights)


@torch.no_grad()
def update_shares(attached: Attached, weights: Mapping[str, float]) -> dict[str, float]:
    """Norm of the update over the norm of the weight, by the layers' last words: {"q_proj": 0.0031, ...}.

    Frobenius norms, over all layers of that name together; layers that have no weight to state are left out.
    weights: from `weight_squares`.
    """
    updates: dict[str, float] = defaultdict(float)
    for name, layer in attached.layers().items():
        if not layer.adapter.mergeable:
            continue
        updates[word_of(name)] += squared_update(layer.adapter, layer.base)
    return {group: math.sqrt(updates[group] / weights[group]) if weights[group] else math.inf for group in updates}


def squared_update(adapter: Adapter, base: nn.Module) -> float:
    """Squared Frobenius norm of the dense update of one layer."""
    factors = adapter.factors() if isinstance(adapter, Delta) else None
    if factors is not None:  # |s B A|^2 = s^2 sum (B'B * A A'): r x r, never (d, k)
        B, A = factors.B.double(), factors.A.double()
        return max(0.0, factors.scale**2 * ((B.T @ B) * (A @ A.T)).sum().item())
    if isinstance(adapter, Delta):
        return adapter.delta_weight().double().square().sum().item()
    W0 = linear.dense(base).to(adapter.site.dtype)
    return (adapter.weight(W0) - W0).double().square().sum().item()


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

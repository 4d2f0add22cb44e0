"""Ensembles in one pass: each row is repeated once per member, and each copy uses its member's adapter.

An adapter with members answers copies when it is told that rows come so (`in_copies`); otherwise it is one model.
Copies are laid side by side as a whole: all rows, then all rows again, so that the first half of what any layer sees of
two copies belongs to the first member.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from lrft.adapters.adapter import Adapter


def copying(model: nn.Module) -> Callable[[], int]:
    """From now on rows go through `model` in copies. Returns what says in how many: 1 for most adapters."""
    adapters = [module for module in model.modules() if isinstance(module, Adapter)]
    for adapter in adapters:
        adapter.in_copies = True
    return lambda: max((adapter.copies for adapter in adapters), default=1)


def by_copy(x: Tensor, copies: int) -> Tensor:
    """x (..., k) of rows in copies -> (copies, n, k). Raises ValueError for what is not in copies."""
    rows = x.flatten(0, -2)
    if len(rows) % copies:
        raise ValueError(
            f"{len(rows)} input rows cannot be divided among {copies} ensemble members: this layer "
            f"receives only part of the tokens"
        )
    return rows.unflatten(0, (copies, -1))

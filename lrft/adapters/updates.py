"""The update of a saved adapter in one layer, and its best pair of a rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters import svd
from lrft.adapters.adapter import Delta, Factors, Site
from lrft.adapters.storage import SavedAdapter
from lrft.model import linear
from lrft.utils.seeds import seed_of

EXACT_SIDE = 1024  # of the smaller side of a layer, up to which the full decomposition is cheap


def words(saved: SavedAdapter) -> str:
    """Its methods, as a sentence names them."""
    return joined(saved.info["methods"])


def joined(methods: Iterable[Mapping[str, Any]]) -> str:
    return " + ".join(entry["name"] for entry in methods)


def update_of(saved: SavedAdapter, site: Site, base: nn.Module) -> Factors | Tensor:
    """Thin factors where the adapter has some, else dW (d, k), on the device of `base`, the layer of the base.

    Raises ValueError for an adapter without an update of a weight.
    """
    adapter = saved.build(site).to(next(base.parameters()).device)
    if not adapter.mergeable:
        raise ValueError(f"{words(saved)} has no update of a weight: its output is not linear in the layer's input")
    if isinstance(adapter, Delta):
        factors = adapter.factors()
        return adapter.delta_weight() if factors is None else factors
    W0 = linear.dense(base).to(site.dtype)
    return adapter.weight(W0) - W0


def dense(update: Factors | Tensor) -> Tensor:
    """dW (d, k)"""
    return update.scale * update.B @ update.A if isinstance(update, Factors) else update


def thin(update: Factors | Tensor, rank: int, name: str) -> tuple[Tensor, Tensor, float]:
    """(B, A, relative error): the pair of at most `rank` that is nearest to the update of the layer `name`.

    Factors of no higher rank stay as they are. In large layers the decomposition is randomized, drawn from the name.
    """
    if isinstance(update, Factors):
        B, A = update.scale * update.B, update.A
        if len(A) <= rank:
            return B, A, 0.0
        # The decomposition of a product of thin matrices is that of a small one between orthonormal bases.
        (left, R), (right, T) = torch.linalg.qr(B), torch.linalg.qr(A.T)
        U, S, Vh = torch.linalg.svd(R @ T.T)
        U, V, lost, whole = left @ U, right @ Vh.T, S[rank:].norm(), S.norm()
    else:
        decompose = svd.exact if min(update.shape) <= EXACT_SIDE else svd.leading
        with torch.random.fork_rng(devices=[update.device] if update.is_cuda else []):
            torch.manual_seed(seed_of(0, name))
            U, S, V = decompose(update, min(rank, *update.shape))
        lost, whole = (update - (U * S) @ V.T).norm(), update.norm()
    root = S[:rank].sqrt()
    return U[:, :rank] * root, (V[:, :rank] * root).T, (lost / whole).item() if whole else 0.0

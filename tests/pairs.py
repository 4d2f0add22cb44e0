"""Layers with pairs whose gradients are those of a gradient G of the weight, for tests of optimisers of pairs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Making
from lrft.optim.named_state import grouped

SHAPES = ((7, 9), (12, 5))  # d outputs, k inputs


def attach(words: Any, rank: int = 3, *, filled: bool = True, shapes: Any = SHAPES, **more: Any) -> Any:
    """In float64; `filled` with random values of A and B instead of the method's start."""
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(k, d) for d, k in shapes]).double()
    attached = lrft.attach(model, {"method": words, "rank": rank, **more})
    if filled:
        fill(attached)
    return attached


def fill(attached: Any, size: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in attached.trained().values():
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def optimizer_of(attached: Any, lr: float = 0.01, *, decay: float = 0.0, eps: float = 1e-8) -> Any:
    composition = compose.compose((e["name"], e["options"]) for e in attached.methods)
    groups = grouped(attached.trained(), {}, lr, decay, owners=attached.owners())
    ranks = {site.name: site.rank for site in attached.sites}
    owner = composition.optimizer_owner
    assert owner is not None
    making = Making((0.9, 0.999), eps, 0, lambda t: t)
    return owner.make_optimizer([{**group, "rank": ranks[group["site"]]} for group in groups], making)


def pairs_of(attached: Any) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """(A, B) of every layer."""
    tensors = [adapter.tensors() for adapter in attached.modules.values()]
    return [(own["A"], own["B"]) for own in tensors]


def gradients(attached: Any, step: int, size: float = 0.3) -> list[Tensor]:
    """A random G (d, k) for each layer, and with it the gradients that A and B have where s = 1."""
    generator = torch.Generator().manual_seed(100 + step)
    made = []
    for A, B in pairs_of(attached):
        G = size * torch.randn(B.shape[0], A.shape[1], generator=generator, dtype=A.dtype)
        A.grad, B.grad = (B.T @ G).detach(), (G @ A.T).detach()
        made.append(G)
    return made


def products(attached: Any) -> list[Tensor]:
    return [(B @ A).detach().clone() for A, B in pairs_of(attached)]

"""How the directions of Online Subspace Descent learn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrft.methods.online_subspace_descent import OnlineAdam, OnlineSubspaceDescent, slope_of
from lrft.utils.seeds import seed_of


def wide(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def far(P: Tensor, G: Tensor) -> Tensor:
    U = G / G.norm()
    return (U @ P.T @ P - U).square().sum()


def made(gap: float, **options: Any) -> tuple[nn.Parameter, OnlineAdam]:
    p = nn.Parameter(torch.zeros(12, 8, dtype=torch.float64))
    optimizer = OnlineAdam(
        OnlineSubspaceDescent(**options),
        [{"params": [("x.D", p)], "rank": 3, "lr": 0.01, "peak": 0.01, "period": 10**6, "gap": gap}],
        betas=(0.9, 0.999),
        eps=1e-8,
        seed_of=lambda name, number: seed_of(0, name, number),
        broadcast=lambda t: t,
    )
    return p, optimizer


def test_the_slope_is_that_of_the_loss_and_does_not_see_how_large_the_gradient_is() -> None:
    G, P = wide(12, 8), wide(3, 8, seed=1).requires_grad_()
    (expected,) = torch.autograd.grad(far(P, G), P)
    assert torch.allclose(slope_of(P.detach(), G), expected, rtol=1e-10)
    assert torch.allclose(slope_of(P.detach(), 1e4 * G), expected, rtol=1e-10)
    best = torch.linalg.svd(G).Vh[:3]
    assert slope_of(best, G).abs().max() < 1e-12


def test_directions_of_one_gradient_learn_another() -> None:
    p, optimizer = made(20.0)
    p.grad = wide(12, 8)
    optimizer.step()
    other = wide(12, 3, seed=4) @ wide(3, 8, seed=5)
    distances = []
    for _ in range(200):
        p.grad = other.clone()
        optimizer.step()
        distances.append(far(optimizer.state[p]["P"], other).item())
    assert distances[0] > 0.3
    assert distances[-1] < 0.01


def test_a_rate_of_zero_leaves_the_first_directions() -> None:
    p, optimizer = made(20.0, decay=0.5)
    for step in range(4):
        optimizer.param_groups[0]["lr"] = 0.01 if step == 0 else 0.0
        p.grad = wide(12, 8, seed=step)
        optimizer.step()
        if step == 0:
            first = optimizer.state[p]["P"].clone()
    assert torch.equal(optimizer.state[p]["P"], first)
    assert torch.allclose(first.abs(), torch.linalg.svd(wide(12, 8)).Vh[:3].abs())

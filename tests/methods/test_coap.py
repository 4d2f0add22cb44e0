"""COAP's projection: what its two kinds of change do."""

from __future__ import annotations

import torch
from torch import Tensor

from lrft.methods.coap import Coap, CoapAdam, descended, loss, sketched
from lrft.utils.seeds import seed_of


def wide(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rest(G: Tensor, P: Tensor) -> Tensor:
    return (G - G @ P.T @ P).norm()


def test_found_anew_the_directions_are_orthonormal_and_hold_more_than_before() -> None:
    G, before = wide(12, 8), torch.linalg.qr(wide(8, 3, seed=1)).Q.T
    now = sketched(G, before)
    assert torch.allclose(now @ now.T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    best = torch.linalg.svd(G).Vh[:3]
    assert rest(G, best) <= rest(G, now) < rest(G, before)


def test_a_step_goes_down_the_loss_and_is_at_most_a_tenth_long() -> None:
    G, P, M = wide(12, 8), torch.linalg.qr(wide(8, 3, seed=1)).Q.T, wide(12, 3, seed=2)
    for dim in (0, 1):
        now = descended(G, P, M, dim)
        assert loss(G, now, M, dim) < loss(G, P, M, dim)
    assert 0 < (descended(1e3 * G, P, M) - P).norm() < 0.1 + 1e-9


def test_moments_are_turned_with_the_directions_or_kept() -> None:
    G, P = wide(12, 8), torch.linalg.qr(wide(8, 3, seed=1)).Q.T
    M, V = wide(12, 3, seed=2), wide(12, 3, seed=3).square()
    for moments in ("keep", "rotate"):
        p = torch.nn.Parameter(torch.zeros(12, 8, dtype=torch.float64))
        optimizer = CoapAdam(
            Coap(moments=moments),
            [{"params": [("x.D", p)], "rank": 3}],
            betas=(0.9, 0.999),
            eps=1e-8,
            seed_of=lambda name, number: seed_of(0, name, number),
            broadcast=lambda t: t,
        )
        state = {"P": P, "exp_avg": M.clone(), "exp_avg_sq": V.clone()}
        optimizer.choose("x.D", 5, state, G, 3)  # the fifth change: found anew
        T = P @ state["P"].T if moments == "rotate" else torch.eye(3, dtype=torch.float64)
        assert torch.allclose(state["exp_avg"], M @ T)
        assert torch.allclose(state["exp_avg_sq"], (V.sqrt() @ T).square())

"""SALT: what it does to the singular values, against a matrix of them that is made whole."""

from __future__ import annotations

import pytest
import tiny
import torch

from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (9, 9)])


@SHAPES
def test_between_the_singular_vectors_it_is_the_scaled_top_and_a_low_rank_rest(d: int, k: int) -> None:
    model, attached = tiny.layer({"salt": {"ratio": 0.3}}, d, k, rank=3)
    m = min(d, k)
    n, W, own = int(0.3 * m), model[0].base.weight, attached.modules["0"]
    assert torch.allclose((own.U[:, :n] * own.sigma) @ own.V[:n] + own.U[:, n:] @ own.U[:, n:].T @ W, W, atol=1e-9)
    tiny.disturb(list(attached.trained().values()))
    with torch.no_grad():
        own.b[0] = -99.0  # a singular value below zero is cut there
    Sigma = (own.U.T @ W @ own.V.T).detach()
    Sigma[:n, :n] = (own.a * own.sigma + own.b).relu().diag().detach()
    Sigma[n:, n:] += (own.X @ own.Y).detach()
    assert Sigma[0, 0] == 0
    adapted = own.weight(W)
    assert torch.allclose(own.U.T @ adapted @ own.V.T, Sigma, atol=1e-9)
    B, A, s = own.factors()
    assert tiny.same_function(model, attached, s * B @ A)
    assert torch.linalg.matrix_rank(attached.delta("0")) <= n + 3
    assert sum(p.numel() for p in attached.trained().values()) == 2 * n + 2 * (m - n) * 3


def test_start_values_and_what_is_saved() -> None:
    model, attached = tiny.layer("salt", 200, 60, rank=30)
    own = attached.modules["0"]
    assert own.sigma.shape == (6,)
    assert torch.allclose(own.sigma, torch.linalg.svdvals(model[0].base.weight)[:6])
    assert own.X.abs().max().item() == pytest.approx((6 / (21 * 30)) ** 0.5, rel=0.01)  # Kaiming, slope sqrt(20)
    assert not own.Y.any()
    assert (own.a == 1).all()
    assert not own.b.any()


def test_what_leaves_no_room_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"salt leaves 13 singular values of a 20 x 14 layer to the rank 14: lower"):
        tiny.layer("salt", 20, 14, rank=14)

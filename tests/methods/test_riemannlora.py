"""Steps on the manifold of matrices of one rank, against dense projections and decompositions."""

from __future__ import annotations

from typing import Any

import pairs
import pytest
import tiny
import torch
from torch import Tensor

import lrft
from lrft.errors import RecipeError
from lrft.methods.riemannlora import frame, polar, rotation, tangent


def zero(**options: Any) -> dict[str, Any]:
    return {"riemannlora": {"init": "zero", **options}}


def projected(W: Tensor, G: Tensor, r: int) -> Tensor:
    """G on the tangent space at W of rank r, densely."""
    U, _, Vh = torch.linalg.svd(W)
    P, Q = U[:, :r] @ U[:, :r].T, Vh[:r].T @ Vh[:r]
    return P @ G + G @ Q - P @ G @ Q


def truncated(W: Tensor, r: int) -> Tensor:
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    return U[:, :r] * S[:r] @ Vh[:r]


@pytest.mark.parametrize("momentum", ["none", "heavy-ball", "muon"])
def test_the_first_two_steps_are_those_of_dense_formulas(momentum: str) -> None:
    attached = pairs.attach(zero(momentum=momentum))
    optimizer = pairs.optimizer_of(attached, lr=0.1)
    W, H = pairs.products(attached), [None, None]
    for step in range(2):
        G = pairs.gradients(attached, step)
        optimizer.step()
        for i in range(2):
            now = projected(W[i], G[i], 3)
            if H[i] is not None and momentum != "none":
                now = 0.9 * projected(W[i], H[i], 3) + 0.1 * now
            H[i] = now
            if momentum == "muon":
                U, S, Vh = torch.linalg.svd(now, full_matrices=False)
                now = projected(W[i], U[:, S > 1e-9] @ Vh[S > 1e-9], 3)
            W[i] = truncated(W[i] - 0.1 * now, 3)
        for dense, found in zip(W, pairs.products(attached), strict=True):
            assert torch.allclose(found, dense, atol=1e-9)


@pytest.mark.parametrize("momentum", ["none", "heavy-ball", "muon"])
def test_the_path_does_not_depend_on_how_the_update_is_split(momentum: str) -> None:
    one, other = pairs.attach(zero(momentum=momentum)), pairs.attach(zero(momentum=momentum))
    S = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 2 * torch.eye(3)
    with torch.no_grad():
        for A, B in pairs.pairs_of(other):
            A.copy_(torch.linalg.solve(S, A))
            B.copy_(B @ S)
    for attached in (one, other):
        optimizer = pairs.optimizer_of(attached, lr=0.1)
        for step in range(4):
            pairs.gradients(attached, step)
            optimizer.step()
    for a, b in zip(pairs.products(one), pairs.products(other), strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_from_zero_the_step_is_the_gradient_on_the_rows_of_a() -> None:
    attached = pairs.attach(zero(momentum="none"), filled=False)
    rows = [frame(A.detach().T)[0] for A, _ in pairs.pairs_of(attached)]
    optimizer = pairs.optimizer_of(attached, lr=0.1)
    made = pairs.gradients(attached, 0)
    optimizer.step()
    for found, G, P in zip(pairs.products(attached), made, rows, strict=True):
        assert torch.allclose(found, -0.1 * G @ P @ P.T, atol=1e-10)


def test_a_polar_factor_has_singular_values_of_one_and_tangents_stay_where_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(n, 4, dtype=torch.float64, generator=generator) for n in (9, 8))
    Q, P = polar(left, right)
    assert torch.allclose(torch.linalg.svdvals(Q @ P.T)[:4], torch.ones(4, dtype=torch.float64))
    bases = [torch.linalg.qr(torch.randn(n, 2, dtype=torch.float64, generator=generator)).Q for n in (9, 8)]
    once = tangent(left, right, *bases)
    again = tangent(*once.factors(), *bases)
    for a, b in zip(once.factors(), again.factors(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_a_direction_that_is_new_is_turned_in_one_way_only() -> None:
    """Two runs whose rounding differs must not part where an old direction was cut and another one has grown."""
    M = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    turned = [rotation(M + 1e-9 * torch.randn(3, 3, dtype=torch.float64)) for _ in range(9)]
    for found in turned:
        assert torch.allclose(found, torch.eye(3, dtype=torch.float64), atol=1e-7)


def test_a_learning_rate_of_zero_moves_nothing() -> None:
    attached = pairs.attach(zero(momentum="none"), filled=False)
    start, optimizer = attached.state_dict(), pairs.optimizer_of(attached, lr=0.0)
    pairs.gradients(attached, 0)
    optimizer.step()
    assert all(torch.equal(value, start[name]) for name, value in attached.state_dict().items())


def test_without_gradients_nothing_moves_not_even_the_factors() -> None:
    attached = pairs.attach(zero(momentum="muon"))
    optimizer = pairs.optimizer_of(attached, lr=0.1)
    pairs.gradients(attached, 0, size=0.0)
    optimizer.step()
    W, balanced = (
        pairs.products(attached),
        [(A.detach().clone(), B.detach().clone()) for A, B in pairs.pairs_of(attached)],
    )
    pairs.gradients(attached, 0, size=0.0)
    optimizer.step()
    for old, now in zip(W, pairs.products(attached), strict=True):
        assert torch.allclose(old, now, atol=1e-12)
    for (A, B), (old_A, old_B) in zip(pairs.pairs_of(attached), balanced, strict=True):
        assert torch.allclose(A, old_A, atol=1e-9)
        assert torch.allclose(B, old_B, atol=1e-9)
        assert torch.allclose(A @ A.T, B.T @ B, atol=1e-9), "balanced"


def test_a_threshold_sets_the_small_singular_values_to_zero_and_they_may_grow_again() -> None:
    attached = pairs.attach(zero(momentum="none", threshold=0.3))
    with torch.no_grad():
        for A, B in pairs.pairs_of(attached):
            A.copy_(torch.eye(3, A.shape[1]))
            B.copy_(torch.eye(B.shape[0], 3) * torch.tensor([2.0, 1.0, 0.5]))  # the last is 0.22 of the norm
    optimizer = pairs.optimizer_of(attached, lr=1.0)
    pairs.gradients(attached, 0, size=0.0)
    optimizer.step()
    assert [int(torch.linalg.matrix_rank(W)) for W in pairs.products(attached)] == [2, 2]
    pairs.gradients(attached, 0, size=3.0)
    optimizer.step()
    assert 3 in [int(torch.linalg.matrix_rank(W)) for W in pairs.products(attached)]


def test_the_optimal_start_sees_the_2r_leading_triplets_of_the_gradient() -> None:
    model, ids = tiny.make("llama").double(), tiny.tokens()
    words = {"method": {"riemannlora": {"size": 1e-6, "rows": 2}}, "rank": 2, "layers": [0]}
    attached = lrft.attach(model, words, batches=[{"input_ids": ids, "labels": ids}])
    for D in attached.layers().values():
        D.base.weight.requires_grad_()
    model(input_ids=ids, labels=ids).loss.backward()
    for name, layer in attached.layers().items():
        own = attached.modules[name].tensors()
        G = layer.base.weight.grad
        W = own["B"] @ own["A"]
        assert torch.allclose(torch.linalg.svdvals(W)[:2], torch.full((2,), 1e-6, dtype=torch.float64), rtol=1e-6)
        best = truncated(G, 4)
        assert (projected(W.detach(), G, 2) - best).norm() < 0.02 * best.norm()


def test_a_rank_above_half_of_the_layer_is_refused() -> None:
    ids = tiny.tokens()
    words = {"method": {"riemannlora": {"rows": 1}}, "rank": 7, "layers": [0]}
    with pytest.raises(RecipeError, match=r"rank 7 is too large for the 12 x 24 model.*k_proj: at most 6"):
        lrft.attach(tiny.make("llama"), words, batches=[{"input_ids": ids, "labels": ids}])

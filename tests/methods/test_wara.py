"""WaRA against a Haar transform that is written out, and its tied form against a Kronecker product."""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import Tensor

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (13, 21)])


def haar(n: int) -> tuple[Tensor, Tensor]:
    """Low and high half (n/2, n) of the one-level transform, n even."""
    low, high = torch.zeros(n // 2, n, dtype=torch.float64), torch.zeros(n // 2, n, dtype=torch.float64)
    for i in range(n // 2):
        low[i, 2 * i] = low[i, 2 * i + 1] = high[i, 2 * i] = 0.5**0.5
        high[i, 2 * i + 1] = -(0.5**0.5)
    whole = torch.cat([low, high])
    assert torch.allclose(whole @ whole.T, torch.eye(n, dtype=torch.float64))
    return low, high


@SHAPES
def test_each_band_of_the_update_is_a_product_of_its_own(d: int, k: int) -> None:
    model, attached = tiny.layer("wara", d, k, rank=2, alpha=3.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    P, Q = haar(d + d % 2), haar(k + k % 2)
    bands = [(P[p], Q[q]) for p in (0, 1) for q in (0, 1)]
    dW = sum(1.5 * p.T @ own.B[i] @ own.A[i] @ q for i, (p, q) in enumerate(bands))
    assert tiny.same_function(model, attached, dW[:d, :k])
    if d % 2 == k % 2 == 0:
        for i, (p, q) in enumerate(bands):
            assert torch.allclose(p @ attached.delta("0") @ q.T, 1.5 * own.B[i] @ own.A[i], atol=1e-12)
    assert torch.linalg.matrix_rank(attached.delta("0")) == 8
    assert own.A.numel() + own.B.numel() == 4 * 2 * ((d + 1) // 2 + (k + 1) // 2)


@SHAPES
def test_tied_it_is_a_kronecker_product(d: int, k: int) -> None:
    model, attached = tiny.layer({"wara": {"tied": True}}, d, k, rank=2, alpha=3.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    two = torch.eye(2, dtype=torch.float64)
    assert tiny.same_function(model, attached, 1.5 * torch.kron(own.B[0] @ own.A[0], two)[:d, :k])
    assert torch.linalg.matrix_rank(attached.delta("0")) == 4


def test_start_values() -> None:
    own = tiny.layer("wara", 40, 200, rank=8)[1].modules["0"]
    assert own.A.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert not own.B.any()

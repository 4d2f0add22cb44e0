"""LoRA^2: the chain of five, its components, and its penalty."""

from __future__ import annotations

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.methods.lora2 import Lora2, gap


@pytest.mark.parametrize(("rank", "inner"), [(4, 8), (6, 3)])
def test_the_update_is_the_chain(rank: int, inner: int) -> None:
    model, attached = tiny.layer({"lora2": {"inner": inner}}, 20, 14, rank=rank, alpha=5.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    dW = 5 / rank * own.B2 @ own.A2 @ own.E.diag() @ own.B1 @ own.A1
    assert tiny.same_function(model, attached, dW)
    assert torch.linalg.matrix_rank(dW) == min(rank, inner)
    with torch.no_grad():
        own.E[1] = 0
    kept = [i for i in range(rank) if i != 1]
    without = 5 / rank * own.B2 @ own.A2[:, kept] @ own.E[kept].diag() @ own.B1[kept] @ own.A1
    assert torch.allclose(attached.delta("0"), without), "a zero takes its component out"


def test_start_values() -> None:
    _, attached = tiny.layer("lora2", 200, 300, rank=30)
    own = attached.modules["0"]
    assert not own.E.any()
    for word in ("A1", "B1", "A2", "B2"):
        assert getattr(own, word).std().item() == pytest.approx(0.02, rel=0.15), word


def test_the_penalty_is_the_mean_distance_of_the_four_from_orthonormal() -> None:
    _, attached = tiny.layer("lora2", 20, 14)
    tiny.disturb(list(attached.trained().values()))
    run = Run(0, 10, attached.model, attached.modules, torch.optim.SGD(attached.trained().values()), 0, lambda t: t)
    expected = 0.0
    for word in ("A1", "B1", "A2", "B2"):
        P = getattr(attached.modules["0"], word).detach()
        S = torch.linalg.svdvals(P)  # |P P' - I| of the shorter side, by the singular values
        expected += (S.square() - 1).square().sum().sqrt() / 4
    found = Lora2(orthogonality=0.3).loss(run)
    assert found is not None
    assert found.item() == pytest.approx(0.3 * expected.item(), rel=1e-10)
    assert gap(torch.linalg.qr(torch.randn(9, 4)).Q) < 1e-5
    assert Lora2(orthogonality=0.0).loss(run) is None


def test_without_the_penalty_nothing_acts_between_passes() -> None:
    assert Lora2().acts_between_passes
    assert not Lora2(orthogonality=0.0).acts_between_passes

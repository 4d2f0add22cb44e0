"""Gates on rows and columns: what they multiply, their noise, and the penalty."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.methods.finegates import FineGates


def gated(**options: Any) -> tuple[Any, Any, Any]:
    """(model, handle, adapter), some gates shut, some half open, beside an update."""
    model, attached = tiny.layer({"finegates": options}, 6, 5)
    own = attached.modules["0"]
    tiny.disturb([own.inner.B])
    with torch.no_grad():
        own.rows[:3] = torch.tensor([-2.0, -0.2, 0.3])
        own.columns[:2] = torch.tensor([-0.1, -3.0])
    return model.eval(), attached, own


def test_a_merged_gate_is_the_gate_and_a_shut_one_takes_out_its_row_or_column() -> None:
    model, _, own = gated()
    W, bias = model[0].base.weight, model[0].base.bias
    rows, columns = ((z.tanh() + 0.5).clamp(0, 1) for z in (own.rows, own.columns))
    expected = rows[:, None] * (W + own.inner.delta_weight()) * columns
    assert torch.allclose(own.weight(W), expected)
    x = torch.randn(4, 5, dtype=torch.float64)
    assert torch.allclose(model(x), x @ expected.T + bias)
    assert not own.weight(W)[0].any()
    assert not own.weight(W)[:, 1].any()
    assert 0 < rows[1] < 1


def test_every_gate_starts_at_one() -> None:
    model, attached = tiny.layer("finegates", 600, 5)
    own, x = attached.modules["0"], torch.randn(4, 5, dtype=torch.float64)
    assert torch.equal(own.weight(model[0].base.weight), model[0].base.weight)
    assert own.rows.std().item() == pytest.approx(0.1, rel=0.2)
    assert torch.allclose(model.eval()(x), model[0].base(x))


def test_in_training_gates_are_noisy_and_stay_between_zero_and_one() -> None:
    model, _, own = gated()
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(0)
    draws = torch.stack([own.gate(own.rows, noisy=True) for _ in range(4000)])
    assert draws.min() == 0
    assert draws.max() == 1
    assert draws[:, 1].std().item() == pytest.approx(0.1, rel=0.1)
    assert not draws[:, 0].any(), "far from open"
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_the_penalty_is_the_distance_of_the_mean_chances_from_the_target() -> None:
    model, attached, own = gated(sparsity=0.3)
    run = Run(0, 10, model, attached.modules, torch.optim.SGD([torch.zeros(1)]), 0, lambda t: t)

    def chance(z: torch.Tensor) -> float:
        found = [0.5 - 0.5 * math.erf((-0.5 - math.tanh(v)) / (0.5 * math.sqrt(2))) for v in z.tolist()]
        return sum(found) / len(found)

    expected = 50 * (abs(chance(own.rows) - 0.7) + abs(chance(own.columns) - 0.7)) / 2
    assert FineGates(sparsity=0.3).loss(run).item() == pytest.approx(expected)
    with torch.no_grad():
        for z in (own.rows, own.columns):
            z.fill_(math.atanh(0.5 * 0.5244005127080407 - 0.5))  # Phi(0.5244) = 0.7
    assert FineGates(sparsity=0.3).loss(run).item() == pytest.approx(0, abs=1e-6)


def test_gates_may_be_trained_alone() -> None:
    _, attached = tiny.layer({"finegates": {"gates_only": True}}, 6, 5)
    assert set(attached.trained()) == {"0.rows", "0.columns"}

"""SLTrain: the entries that are trained one by one, and their gradients."""

from __future__ import annotations

import pytest
import tiny
import torch

WORDS = {"sltrain": {"density": 0.15}}


@pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20)])
def test_the_update_is_the_pair_plus_the_entries(d: int, k: int) -> None:
    model, attached = tiny.layer(WORDS, d, k, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    V = torch.zeros(d, k, dtype=torch.float64)
    for entry, value in zip(own.entries.tolist(), own.v.tolist(), strict=True):
        V[entry // k, entry % k] += value
    assert torch.equal(own.sparse(), V)
    assert len(set(own.entries.tolist())) == len(own.v) == int(0.15 * d * k)
    assert torch.allclose(attached.delta("0"), 1.5 * own.B @ own.A + V, atol=1e-12)
    # Gradients: those of a dense weight, gathered at the entries and multiplied with the other factor.
    x, g = torch.randn(6, k, dtype=torch.float64), torch.randn(6, d, dtype=torch.float64)
    y = model(x)
    assert torch.allclose(y, x @ (model[0].base.weight + attached.delta("0")).T + model[0].base.bias, atol=1e-12)
    y.backward(g)
    G = g.T @ x
    assert torch.allclose(own.v.grad, G.flatten()[own.entries], atol=1e-12)
    assert torch.allclose(own.B.grad, 1.5 * G @ own.A.T, atol=1e-12)
    assert torch.allclose(own.A.grad, 1.5 * own.B.T @ G, atol=1e-12)


def test_the_entries_follow_from_seed_and_shape_and_are_not_saved() -> None:
    one, again = (tiny.layer(WORDS, 20, 14, rank=rank)[1].modules["0"] for rank in (2, 3))
    assert torch.equal(one.entries, again.entries)
    other = tiny.layer({"sltrain": {"density": 0.15, "positions_seed": 1}}, 20, 14)[1].modules["0"]
    assert not torch.equal(one.entries, other.entries)
    assert set(one.tensors()) == {"A", "B", "v"}


def test_without_entries_it_is_lora() -> None:
    """A density too low for one entry; and at 1 every entry is trained."""
    _, attached = tiny.layer({"sltrain": {"density": 0.001}}, 20, 14, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    assert own.v.numel() == 0
    assert torch.equal(attached.delta("0"), 1.5 * own.B @ own.A)
    assert tiny.layer({"sltrain": {"density": 1.0}}, 20, 14)[1].modules["0"].v.numel() == 280

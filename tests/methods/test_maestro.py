"""Maestro's draws, its penalty by tails, and what is shut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lrft
from lrft.adapters.part import Run
from lrft.methods.maestro import Maestro, tails


def attached(rank: int = 4) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 7)).double()
    found = lrft.attach(model, {"method": "maestro", "rank": rank})
    for adapter in found.modules.values():
        nn.init.normal_(adapter.B)
    return found


def run_of(found: Any, step: int, seed: int = 0) -> Run:
    return Run(step, 10, found.model, found.modules, torch.optim.SGD([torch.zeros(1)]), seed, lambda t: t)


def test_tails_and_their_gradient() -> None:
    rows = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(tails(rows), torch.stack([rows[i:].norm() for i in range(4)]))
    assert torch.autograd.gradcheck(tails, rows)
    zero = torch.zeros(3, 6, requires_grad=True)
    tails(zero).sum().backward()
    assert not zero.grad.any(), "B starts at zero"


def test_the_penalty_sums_the_tails_of_all_layers() -> None:
    found = attached()
    expected = sum((a.A[i:].norm() + a.B[:, i:].norm()) for a in found.modules.values() for i in range(4))
    assert Maestro(strength=0.5).loss(run_of(found, 0)).item() == pytest.approx(0.5 * expected.item())
    assert Maestro(strength=0.0).loss(run_of(found, 0)) is None


def test_in_training_one_layer_uses_its_first_components_only_and_all_else_is_whole() -> None:
    found, part, seen = attached(), Maestro(), set()
    x = torch.randn(3, 9, dtype=torch.float64)
    for step in range(60):
        part.before_step(run_of(found, step))
        cut = {name: a.open for name, a in found.modules.items()}
        assert sum(b < 4 for b in cut.values()) <= 1
        seen.update(cut.items())
        for name, adapter in found.modules.items():
            site, b = adapter.site, cut[name]
            expected = site.scale * adapter.B[:, :b] @ adapter.A[:b]
            inputs = x if site.k == 9 else x[:, :8]
            assert torch.allclose(adapter.train().delta(inputs), inputs @ expected.T)
            assert torch.allclose(adapter.eval().delta(inputs), inputs @ adapter.delta_weight().T)
            assert torch.allclose(adapter.train().delta_weight(), site.scale * adapter.B @ adapter.A)
    assert seen == {(name, b) for name in found.modules for b in range(1, 5)}


def test_components_whose_tail_has_become_small_are_shut_once_it_is_time() -> None:
    found, part = attached(), Maestro(threshold=1e-3, begin=0.5)
    with torch.no_grad():
        found.modules["0"].B[:, 2:] *= 1e-6
    for step, kept in ((3, 4), (4, 2)):
        part.after_step(run_of(found, step))
        assert int(found.modules["0"].gate.sum()) == kept
        assert int(found.modules["1"].gate.sum()) == 4
    assert len(found.modules["0"].peft().A) == 2

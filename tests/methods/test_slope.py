"""The lazy pair of SLoPe: when it is there, and what it adds."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
import torch
from runs import Place

import lrft
from lrft.adapters.part import Run
from lrft.methods.slope import Slope


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("slope"))


def pair_of(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(tensors of the lazy pairs, Adam's first moments of them) of a checkpoint."""
    found = runs.tensors(folder)
    own = {name: t for name, t in found.items() if name.rsplit(".", 1)[-1] in ("lazy_A", "lazy_B")}
    return own, {name: t for name, t in found.items() if "lazy_B/exp_avg" in name}


def test_it_is_shut_and_without_effect_until_the_last_steps(place: Place) -> None:
    keys = ("adapter.method=[{slope: {share: 0.34}}]", "training.weight_decay=0.1")  # the last 2 of 6 steps
    whole = place.train(*keys, out="whole")
    plain = place.train("adapter.method=full", "training.weight_decay=0.1", out="plain")
    losses = [[r["loss"] for r in runs.records(out) if "loss" in r] for out in (whole, plain)]
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-5)
    own, _ = pair_of(whole)
    assert own
    assert all(t.any() for t in own.values())


def test_it_opens_once_with_b_zero_and_fresh_moments() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 7)).double()
    attached = lrft.attach(model, {"method": "slope", "rank": 2})
    optimizer = torch.optim.AdamW(attached.trained().items(), weight_decay=0.1)
    part, x = Slope(share=0.1), torch.randn(5, 9, dtype=torch.float64)
    for step in range(20):
        run = Run(step, 20, model, attached.modules, optimizer, 3, lambda t: t)
        before = model(x)
        part.before_step(run)
        lazy = attached.modules["0"]
        assert bool(lazy.gate) == (step >= 18)
        if step == 18:
            assert torch.equal(model(x), before), "adds nothing yet"
            assert lazy.lazy_A.std() > 0.5
            assert int(optimizer.state[lazy.lazy_B]["step"]) == 0
            first = lazy.lazy_A.detach().clone()
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        if step < 18:
            assert not lazy.lazy_A.any()
            assert not lazy.lazy_B.any()
    assert lazy.lazy_B.any()
    assert not torch.equal(lazy.lazy_A, first)
    dW = lazy.inner.delta_weight() + lazy.lazy_B @ lazy.lazy_A / 2
    assert torch.allclose(attached.delta("0"), dW)

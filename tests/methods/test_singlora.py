"""SingLoRA: its shape and sign, its ramp by optimiser steps, and a run that is cut inside the ramp."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import tiny
import torch
from runs import At, Place
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run


def layer(d: int, k: int, options: dict[str, Any] | None = None, rank: int = 3) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    return model, lrft.attach(model, {"method": {"singlora": options or {}}, "rank": rank, "alpha": 6.0})


def begin(attached: Any, step: int, total: int = 100) -> None:
    """What the loop does before a step."""
    part = compose.compose((entry["name"], entry["options"]) for entry in attached.methods).method
    optimizer = torch.optim.SGD(attached.trained().values())
    part.before_step(Run(step, total, attached.model, attached.modules, optimizer, 0, lambda t: t))


@pytest.mark.parametrize(("d", "k"), [(24, 36), (36, 24), (8, 8)])
@pytest.mark.parametrize("step", [4, 9, 50])
def test_the_update_and_the_forward_are_the_formula(d: int, k: int, step: int) -> None:
    model, attached = layer(d, k)
    begin(attached, step)
    A = attached.modules["0"].tensors()["A"].detach()
    u = min((step + 1) / 10, 1.0)
    expected = torch.zeros(d, k, dtype=torch.float64)
    for i in range(d):
        for j in range(k):
            expected[i, j] = 6.0 / 3 * u * A[i] @ A[j]
    assert torch.allclose(attached.delta("0"), expected, atol=1e-12)
    assert torch.linalg.matrix_rank(expected) == 3
    x = torch.randn(5, k, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    y = model(x)
    assert torch.allclose(y, x @ (model[0].base.weight + expected).T + model[0].bias, atol=1e-12)
    y.square().sum().backward()
    other = A.clone().requires_grad_()
    W = model[0].base.weight + 2.0 * u * other[:d] @ other[:k].T
    (x @ W.T + model[0].bias).square().sum().backward()
    assert torch.allclose(attached.modules["0"].tensors()["A"].grad, other.grad, atol=1e-9)


def test_a_square_update_is_symmetric_and_never_subtracts() -> None:
    _, attached = layer(10, 10)
    begin(attached, 99)
    dW = attached.delta("0")
    assert torch.equal(dW, dW.T) or torch.allclose(dW, dW.T, atol=1e-15)
    eigenvalues = torch.linalg.eigvalsh(dW)
    assert eigenvalues.min() >= -1e-12
    assert eigenvalues.max() > 0.1
    _, attached = layer(10, 14)
    begin(attached, 99)
    assert torch.linalg.eigvalsh(attached.delta("0")[:, :10]).min() >= -1e-12


@pytest.mark.parametrize(
    ("ramp", "total", "expected"),
    [
        (0.1, 100, {0: 0.1, 4: 0.5, 9: 1.0, 99: 1.0}),
        (1.0, 10, {0: 0.1, 9: 1.0}),
        (4.0, 1000, {0: 0.25, 3: 1.0, 500: 1.0}),
        (0.1, 5, {0: 1.0}),
        (50.0, 10, {9: 0.2}),
    ],
)
def test_the_ramp_counts_steps_or_shares_of_the_run(ramp: float, total: int, expected: dict[int, float]) -> None:
    _, attached = layer(4, 5, {"ramp": ramp})
    for step, u in expected.items():
        begin(attached, step, total)
        assert attached.modules["0"].tensors()["ramp"].item() == pytest.approx(u)


def test_fresh_is_the_base_and_the_first_step_already_has_a_gradient() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "singlora", "rank": 3})
    assert not any(attached.delta(name).any() for name in attached.modules)
    begin(attached, 0)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in attached.trained().values())


def test_micro_batches_and_recomputation_do_not_move_the_ramp(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def note(run: Run) -> None:
        seen.append(next(iter(run.adapters.values())).tensors()["ramp"].item())

    runs.add_parts(monkeypatch, At("after_step", 0, note))
    place.train(
        "adapter.method={singlora: {ramp: 4}}",
        "training.micro_batch_size=1",
        "training.gradient_checkpointing=full",
        "evaluation.every=1",
    )
    assert seen == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_a_run_cut_inside_the_ramp_resumes_exactly_and_its_checkpoint_has_the_ramp(place: Place) -> None:
    keys = ("adapter.method={singlora: {ramp: 5}}", "checkpoint.every=2", "checkpoint.keep=9")
    whole = place.train(*keys)
    part = runs.cut(whole, 2, place.root / "cut")
    ramps = {n: t.item() for n, t in runs.tensors(part).items() if n.endswith(".ramp")}
    assert set(ramps.values()) == {torch.tensor(0.4).item()}
    place.train(*keys, out=part.name, resume="last")
    assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_the_ramp_is_saved_and_loaded_and_needs_no_training() -> None:
    _, attached = layer(4, 5)
    begin(attached, 2)
    assert list(attached.trained()) == ["0.A"]
    _, other = layer(4, 5)
    other.load_state_dict(attached.state_dict())
    assert other.delta("0").any()
    assert torch.equal(other.delta("0"), attached.delta("0"))


def test_beside_dora_the_norms_follow_the_ramp() -> None:
    model = tiny.make("llama").double()
    attached = lrft.attach(model, {"method": ["singlora", "dora"], "rank": 2})
    name, layer = next(iter(attached.layers().items()))
    x = torch.randn(2, 3, layer.adapter.site.k, dtype=torch.float64)
    for step in (2, 50):
        begin(attached, step)
        W = layer.adapter.weight(layer.base.weight)
        assert torch.allclose(layer(x), x @ W.T, atol=1e-10), (name, step)


@pytest.mark.parametrize("rank", [2, 16, 64])
def test_the_start_does_not_drown_the_weight(rank: int) -> None:
    """It comes in with the ramp, whether anything was learned or not."""
    model, attached = layer(256, 256, rank=rank)
    begin(attached, 99)
    assert 0 < attached.delta("0").norm() < model[0].base.weight.norm() / 2

"""BiLoRA: who learns from which rows, and what is left without the upper level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import runs
import tiny
import torch
from passes import Composing
from runs import Place
from torch import nn

import lrft
from lrft.adapters.adapter import Delta, Site
from lrft.adapters.gradients import Gradients
from lrft.adapters.part import Run
from lrft.methods.adalora import AdaLora
from lrft.methods.bilora import Bilora


def test_the_update_is_a_sum_of_gated_components() -> None:
    model, attached = tiny.layer("bilora", 9, 7)
    adapter = attached.modules["0"]
    tiny.disturb(list(attached.trained().values()))
    dW = 2.0 * sum(adapter.gate[i] * adapter.B[:, i, None] * adapter.A[None, i] for i in range(4))
    assert tiny.same_function(model, attached, dW)


def test_the_penalty_is_the_mean_squared_distance_from_orthonormal_factors() -> None:
    model, attached = tiny.layer("bilora", 9, 7)
    adapter = attached.modules["0"]
    tiny.disturb([adapter.A, adapter.B])
    run = Run(0, 10, model, attached.modules, torch.optim.SGD(attached.trained().values()), 0, lambda t: t)
    one = torch.eye(4, dtype=torch.float64)
    gaps = [((gram - one) ** 2).sum() for gram in (adapter.A @ adapter.A.T, adapter.B.T @ adapter.B)]
    assert torch.allclose(Bilora(orthogonality=0.7).loss(run), 0.7 * (gaps[0] + gaps[1]) / 2)
    assert Bilora(orthogonality=0.0).loss(run) is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("bilora"), train_rows=12)


def test_vectors_follow_their_rows_and_the_gate_the_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a run: A and B step along the gradient of the step's rows with the new gate, the gate along none of these."""
    seen: list[bool] = []
    original = Bilora.compose_gradient

    def watched(self: Bilora, run: Run, gradient: Gradients, passes: Any) -> Gradients:
        made = original(self, run, gradient, passes)
        gates = {adapter.tensors()["gate"] for adapter in run.adapters.values()}
        with passes.stepped({p: g for p, g in made.items() if p in gates}):
            lower = passes.own()
        seen.append(all(torch.equal(made[p], lower[p]) for p in lower if p not in gates))
        seen.append(any(made[p].abs().max() > 0 for p in gates) and made.keys() == gradient.keys())
        seen.append(not any(torch.equal(made[p], lower[p]) for p in gates))
        return made

    monkeypatch.setattr(Bilora, "compose_gradient", watched)
    place.train("adapter.method=bilora", "training.max_steps=3", out="watched")
    assert seen == [True] * 9


def test_with_a_gate_that_stays_it_is_adalora_without_pruning(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the same rows. The gate is open and its rate zero."""
    for method in (Bilora, AdaLora):
        build = method.build

        def opened(self: Any, site: Site, build: Any = build) -> Delta:
            adapter: Any = build(self, site)
            nn.init.constant_(adapter.gate, 0.5)
            return adapter

        monkeypatch.setattr(method, "build", opened)
        monkeypatch.setattr(method, "lr_factors", lambda self: {"gate": 0.0})
        monkeypatch.setattr(method, "may_not_move", ("gate",))
    keys = ("training.max_steps=4", "training.max_grad_norm=none")
    ours = runs.tensors(place.train("adapter.method=[{bilora: {orthogonality: 0}}]", *keys, out="bilora"))
    runs.add_parts(monkeypatch, Composing(lambda *_: None, 0.2))
    adalora = "adapter.method=[{adalora: {over: 1, orthogonality: 0}}]"
    theirs = runs.tensors(place.train(adalora, *keys, out="adalora"))
    names = [name for name in ours if name.endswith((".A", ".B"))]
    assert names
    assert all(torch.equal(ours[name], theirs[name]) for name in names)


def test_saved_it_is_a_lora_of_the_same_rank(tmp_path: Path) -> None:
    model = tiny.make("llama")
    attached = lrft.attach(model, {"method": "bilora", "rank": 3})
    tiny.disturb(list(attached.trained().values()))
    for name, adapter in attached.modules.items():
        form = adapter.peft()
        assert form.A.shape[0] == 3
        assert torch.allclose(form.scale * form.B @ form.A, attached.delta(name), rtol=1e-5, atol=1e-6)

"""SaRA: which entries are trained, the second choice, and the nuclear norm."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import lrft
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.sara import Sara


def layer(**options: Any) -> tuple[Any, Any, Any]:
    model, attached = tiny.layer({"sara": {"density": 0.25, **options}}, 8, 6)
    return model, attached, attached.modules["0"]


def run_of(model: Any, attached: Any, step: int, optimizer: Any = None) -> Run:
    optimizer = optimizer or torch.optim.AdamW(attached.trained().values())
    return Run(step, 10, model, attached.modules, optimizer, 0, lambda t: t)


def test_the_smallest_entries_are_trained_and_all_others_keep_their_bits() -> None:
    model, _, own = layer()
    W = model[0].base.weight
    tau = W.abs().flatten().sort().values[12]
    assert not own.delta_weight().any()
    tiny.disturb([own.v])
    adapted = own.weight(W)
    assert torch.equal(adapted != W, W.abs() < tau)
    assert torch.equal(adapted[W.abs() >= tau], W[W.abs() >= tau])
    dW = torch.zeros(48, dtype=torch.float64)
    dW[own.entries] = own.v.detach()
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.allclose(model(x), x @ (W + dW.view(8, 6)).T + model[0].base.bias)


def test_after_the_second_choice_what_has_grown_stands_still_and_moments_begin_anew() -> None:
    model, attached, own = layer(strength=0.0)
    part, W = Sara(density=0.25, strength=0.0, again=0.5), model[0].base.weight
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=0.02, weight_decay=0.1)
    grown, frozen = torch.zeros(12, dtype=torch.bool), own.v
    tau = W.flatten()[own.entries].abs().max()
    for step in range(10):
        run = run_of(model, attached, step, optimizer)
        if step == 5:
            grown, frozen = (W.flatten()[own.entries] + own.v).abs() > tau, own.v.detach().clone()
        part.before_step(run)
        if step == 5:
            assert int(optimizer.state[own.v]["step"]) == 0
        optimizer.zero_grad()
        (model(torch.eye(6, dtype=torch.float64)) - 5).square().sum().backward()
        part.after_backward(run)
        optimizer.param_groups[0]["weight_decay"] = 0.0  # as a run does for vectors
        optimizer.step()
        part.after_step(run)
        if step == 7:  # a resumed run
            state, part = part.state(), Sara(density=0.25, strength=0.0, again=0.5)
            part.load_state(state)
    assert 0 < int(grown.sum()) < 12
    assert torch.equal(own.v == frozen, grown)


def test_the_penalty_is_the_nuclear_norm_of_the_trained_entries_and_reaches_them() -> None:
    model, attached, own = layer()
    tiny.disturb([own.v])
    W = model[0].base.weight
    chosen = torch.zeros(48, dtype=torch.float64).index_fill(0, own.entries, 1).view(8, 6)
    expected = torch.linalg.svdvals((W + own.delta_weight()) * chosen).sum()
    penalty = Sara(strength=0.1).loss(run_of(model, attached, 0))
    assert penalty.item() == pytest.approx(0.1 * expected.item())
    penalty.backward()
    assert own.v.grad.any()


def test_each_step_draws_one_layer_by_the_seed() -> None:
    attached = lrft.attach(tiny.make("llama"), {"method": "sara"})
    drawn = set()
    for step in range(10):
        for p in attached.trained().values():
            p.grad = None
        Sara().loss(run_of(attached.model, attached, step)).backward()
        names = [name for name, p in attached.trained().items() if p.grad is not None]
        assert len(names) == 1
        drawn.update(names)
    assert len(drawn) > 3


def test_a_quantised_base_is_refused(tmp_path: Any) -> None:
    with pytest.raises(RecipeError, match="which quantisation makes equal"):
        lrft.recipe.load(write(tmp_path))


def write(folder: Any) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(
        "model: {name: m, quantization: nf4}\ndata: d\noutput_dir: o\nadapter: {method: sara}\n", encoding="utf-8"
    )
    return path

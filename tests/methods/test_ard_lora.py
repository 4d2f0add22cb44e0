"""The trained number of components of ARD-LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.methods.ard_lora import ArdLora


def run_of(attached: Any, step: int = 0) -> Run:
    return Run(step, 10, attached.model, attached.modules, torch.optim.SGD([torch.zeros(1)]), 0, lambda t: t)


def test_at_one_it_is_lora_of_the_recipes_rank() -> None:
    _, attached = tiny.layer("ard-lora", 9, 8)
    own = attached.modules["0"]
    tiny.disturb([own.A, own.B])
    assert own.site.rank == 8
    assert torch.equal(own.gate(), torch.tensor([1.0] * 4 + [0.0] * 4).double())
    assert torch.allclose(own.delta_weight(), 2.0 * own.B[:, :4] @ own.A[:4], atol=1e-14)


@pytest.mark.parametrize("a", [0.25, 0.6, 1.0, 1.1, 2.0])
def test_the_gates_are_a_soft_prefix(a: float) -> None:
    model, attached = tiny.layer("ard-lora", 9, 8)
    own = attached.modules["0"]
    tiny.disturb([own.A, own.B])
    torch.nn.init.constant_(own.a, a)
    gate = own.gate()
    assert gate.sum().item() == pytest.approx(4 * a)
    assert (gate.diff() <= 0).all()
    assert ((gate > 0) & (gate < 1)).sum() <= 1
    form = own.peft()
    assert len(form.A) == int((gate > 0).sum()) >= 1
    assert torch.allclose(form.scale * form.B @ form.A, own.delta_weight())
    assert tiny.same_function(model, attached, 2.0 * own.B @ torch.diag(gate) @ own.A)


def test_the_penalty_counts_components_and_their_change_which_is_none_at_first() -> None:
    _, attached = tiny.layer("ard-lora", 9, 8)
    own, part = attached.modules["0"], ArdLora(strength=0.1, tv=3.0)
    assert part.loss(run_of(attached)).item() == pytest.approx(0.1)
    part.after_backward(run_of(attached))
    with torch.no_grad():
        own.a.add_(0.5)
    again = ArdLora(strength=0.1, tv=3.0)
    again.load_state(part.state())
    for one in (part, again):
        own.a.grad = None
        penalty = one.loss(run_of(attached, 1))
        assert penalty.item() == pytest.approx(0.1 * (1.5 + 3 * 0.25))
        penalty.backward()
        assert float(own.a.grad) == pytest.approx(0.1 * (1 + 2 * 3 * 0.5)), "the value before is a constant"


def test_one_component_is_left_and_no_more_used_than_there_are() -> None:
    _, attached = tiny.layer("ard-lora", 9, 8)
    own, part = attached.modules["0"], ArdLora()
    for value, kept in ((-3.0, 0.25), (5.0, 2.0), (0.7, 0.7)):
        torch.nn.init.constant_(own.a, value)
        part.after_step(run_of(attached))
        assert own.a.item() == pytest.approx(kept)


def test_a_step_down_the_loss_can_open_and_shut_components() -> None:
    """At a = 1 the gradient of a is there: the last open component and the first shut one pass it on."""
    model, attached = tiny.layer("ard-lora", 9, 8)
    own = attached.modules["0"]
    tiny.disturb([own.A, own.B])
    model(torch.ones(2, 8, dtype=torch.float64)).sum().backward()
    assert own.a.grad.abs() > 0

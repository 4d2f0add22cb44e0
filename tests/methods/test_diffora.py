"""DiffoRA: gates and adapters that train in turn, and the choice."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import lrft
from lrft.adapters import compose
from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Run
from lrft.methods.diffora import Diffora, largest


def test_the_largest_of_each_block_are_chosen_and_of_equal_ones_the_first_by_name() -> None:
    depths = {"0.a": 0, "0.b": 0, "0.c": 0, "1.a": 1, "1.b": 1, "1.c": 1}
    z = {"0.a": 0.1, "0.b": 0.3, "0.c": 0.2, "1.c": 0.0, "1.b": 0.0, "1.a": 0.0}
    assert largest(depths, z, 0.67) == {"0.b", "0.c", "1.a", "1.b"}
    assert largest(depths, z, 0.01) == {"0.b", "1.a"}, "one at least"
    assert largest(depths, z, 1.0) == set(depths)


def test_in_the_search_a_step_trains_the_gates_or_the_adapters_and_nothing_else() -> None:
    model, attached = tiny.layer("diffora", 6, 5)
    part, optimizer = Diffora(search=0.9), torch.optim.AdamW(attached.trained().values(), weight_decay=0.1)
    own, x = attached.modules["0"], torch.randn(4, 5, dtype=torch.float64)
    for step in range(9):
        run = Run(step, 10, model, attached.modules, optimizer, 0, lambda t: t)
        before = {name: t.clone() for name, t in own.tensors().items()}
        states = {name: {k: v.clone() for k, v in optimizer.state[t].items()} for name, t in own.tensors().items()}
        part.before_step(run)
        optimizer.zero_grad()
        (model(x) - 3).square().sum().backward()
        part.after_backward(run)
        optimizer.step()
        part.after_step(run)
        trained = {"z"} if step % 3 == 2 else {"A", "B"}
        for name, tensor in own.tensors().items():
            assert torch.equal(tensor, before[name]) == (name not in trained), (step, name)
            if name not in trained and states[name]:
                assert all(torch.equal(optimizer.state[tensor][k], v) for k, v in states[name].items())


@pytest.mark.parametrize("keep_weights", [False, True])
def test_after_the_search_some_layers_are_plain_loras_and_the_others_nothing(keep_weights: bool) -> None:
    part = Diffora(search=0.5, keep=0.3, keep_weights=keep_weights)
    attached = lrft.attach(tiny.make("llama"), {"method": "diffora", "rank": 2})
    tiny.disturb(list(attached.trained().values()))
    before = attached.state_dict()
    optimizer = torch.optim.AdamW(attached.trained().values())
    composition = compose.compose([("diffora", {})])

    def fresh(site: Any, n: int) -> Any:
        return rebuild_site(site, n, composition=composition, seed=0)

    run = Run(5, 10, attached.model, attached.modules, optimizer, 0, lambda t: t, fresh=fresh)
    part.before_step(run)
    kept = [name for name, adapter in attached.modules.items() if adapter.settled == 1]
    for depth in (0, 1):
        inside = {name: before[f"{name}.z"] for name in attached.modules if f".{depth}." in name}
        assert {name for name in kept if name in inside} == set(sorted(inside, key=inside.get)[-2:])  # type: ignore[arg-type]
    for name, adapter in attached.modules.items():
        tiny.disturb([adapter.B])
        expected = adapter.site.scale * adapter.B @ adapter.A if name in kept else torch.zeros(())
        assert torch.allclose(attached.delta(name), expected.expand_as(attached.delta(name)))
        assert torch.equal(adapter.A, before[f"{name}.A"]) == keep_weights


def test_a_gate_of_zero_adds_nothing_and_the_start_is_half_open() -> None:
    model, attached = tiny.layer("diffora", 6, 5)
    own = attached.modules["0"]
    tiny.disturb([own.A, own.B])
    assert tiny.same_function(model, attached, own.z.sigmoid() * 2.0 * own.B @ own.A)
    assert own.gate().item() == 0.5
    torch.nn.init.constant_(own.z, -1e9)
    assert not attached.delta("0").any()

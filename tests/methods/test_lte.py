"""Heads in turn and their merges, against a weight into which they are merged."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.methods.lte import Lte


def train(heads: int, merge: int, steps: int, watch: Any = None) -> tuple[Any, Any]:
    """A run of one layer that pulls its output to one of four targets, a new one in each step."""
    options = {"heads": heads, "merge": merge}
    model, attached = tiny.layer({"lte": options}, 6, 5, rank=2)
    optimizer, part = torch.optim.AdamW(attached.trained().values(), lr=0.05), Lte(**options)
    torch.manual_seed(3)
    x, targets = torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 7, 6, dtype=torch.float64)
    for step in range(steps):
        run = Run(step, steps, model, attached.modules, optimizer, 0, lambda t: t)
        model.train()
        part.before_step(run)
        optimizer.zero_grad()
        out = model(x)
        (out - targets[step % 4]).square().sum().backward()
        part.after_backward(run)
        if watch:
            watch(step, model[0], x, out)
        optimizer.step()
        part.after_step(run)
    return model.eval(), attached


@pytest.mark.parametrize(("heads", "merge"), [(3, 1), (2, 3)])
def test_each_head_sees_the_weight_into_which_all_were_merged_and_itself(heads: int, merge: int) -> None:
    """The merged weight is kept here as in the paper: the mean of the differences since the last merge is added."""
    merged: dict[str, Any] = {}

    def watch(step: int, layer: Any, x: torch.Tensor, out: torch.Tensor) -> None:
        W, adapter = layer.base.weight, layer.adapter
        products = [2.0 * (h.B @ h.A).detach() for h in adapter.heads]
        if not merged:
            merged.update(W=W.clone(), last=[torch.zeros_like(W)] * heads)
        if step and step % (heads * merge) == 0:
            merged["W"] = merged["W"] + torch.stack(
                [now - then for now, then in zip(products, merged["last"], strict=True)]
            ).mean(0)
            merged["last"] = products
        turn = step % heads
        seen = merged["W"] + products[turn] - merged["last"][turn]
        assert torch.allclose(out, x @ seen.T + layer.base.bias, atol=1e-12), step

    _, attached = train(heads, merge, 4 * heads * merge, watch)
    own = attached.modules["0"]
    mean = torch.stack([2.0 * h.B @ h.A for h in own.heads]).mean(0)
    assert torch.allclose(own.delta_weight(), mean)
    form = own.peft()
    assert torch.allclose(form.scale * form.B @ form.A, mean)
    assert len(form.A) == 2 * heads


def test_a_head_learns_as_if_it_were_alone_with_an_optimiser_of_its_own() -> None:
    """Of two heads without a merge, each is a LoRA that sees every second step."""
    _, attached = train(2, 100, 8)
    model, single = tiny.layer("lora", 6, 5, rank=2)
    _, fresh = tiny.layer({"lte": {"heads": 2}}, 6, 5, rank=2)
    single.modules["0"].load(dict(fresh.modules["0"].heads[0].named_parameters()))
    optimizer = torch.optim.AdamW(single.trained().values(), lr=0.05)
    torch.manual_seed(3)
    x, targets = torch.randn(7, 5, dtype=torch.float64), torch.randn(4, 7, 6, dtype=torch.float64)
    for step in range(0, 8, 2):
        optimizer.zero_grad()
        (model(x) - targets[step % 4]).square().sum().backward()
        optimizer.step()
    head = attached.modules["0"].heads[0]
    assert torch.allclose(head.A, single.modules["0"].A, atol=1e-12)
    assert torch.allclose(head.B, single.modules["0"].B, atol=1e-12)
    assert not torch.equal(head.A, attached.modules["0"].heads[1].A)


def test_one_head_is_lora() -> None:
    model, attached = train(1, 2, 5)
    own = attached.modules["0"]
    assert tiny.same_function(model, attached, 2.0 * own.heads[0].B @ own.heads[0].A)
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(model.train()(x), model.eval()(x)), "what was merged cancels"


def test_the_orthogonal_start_has_rows_of_the_released_length() -> None:
    _, attached = tiny.layer({"lte": {"init": "orthogonal"}}, 6, 5, rank=2)
    for head in attached.modules["0"].heads:
        assert torch.allclose(head.A @ head.A.T, 2.5 * torch.eye(2, dtype=torch.float64))
        assert not head.B.any()

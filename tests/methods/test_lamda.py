"""LaMDA: its start from random or from the weight, and columns that are frozen to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.lamda import Lamda


def test_the_update_is_the_chain() -> None:
    model, attached = tiny.layer("lamda", 20, 14, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    own = attached.modules["0"]
    assert tiny.same_function(model, attached, 6 / 4 * own.B @ own.S @ own.A)
    assert torch.linalg.matrix_rank(attached.delta("0")) == 4
    assert not own.A.requires_grad


def test_the_start_from_the_weight_is_its_leading_part_and_counted_from_there() -> None:
    model, attached = tiny.layer({"lamda": {"init": "svd"}}, 20, 14, alpha=6.0)
    own, W, s = attached.modules["0"], model[0].base.weight, 1.5
    U, S, Vh = torch.linalg.svd(W)
    start = (s * own.B @ own.S @ own.A).detach()
    assert torch.allclose(start, U[:, :4] @ S[:4].diag() @ Vh[:4], atol=1e-9)
    assert not attached.delta("0").any()
    tiny.disturb(list(attached.trained().values()))
    assert tiny.same_function(model, attached, s * own.B @ own.S @ own.A - start)


def test_the_schedule_freezes_every_column_in_the_first_share_of_the_run() -> None:
    frozen = [Lamda().frozen(10, step, 100) for step in range(100)]
    assert frozen[:7] == [0, 0, 0, 1, 1, 1, 2]
    assert frozen[29:31] == [9, 10]
    assert frozen == sorted(frozen)
    assert Lamda(freeze=1.0).frozen(10, 99, 100) == 9


@pytest.mark.parametrize("words", [["lamda"], ["lamda", "dora"]])
def test_a_frozen_column_keeps_its_bits_under_momentum_and_weight_decay(words: list[str]) -> None:
    model, attached = tiny.layer([{"lamda": {"freeze": 0.5}}, *words[1:]], 20, 14)
    own: Any = next(m for m in attached.modules["0"].modules() if hasattr(m, "S"))
    optimizer = torch.optim.AdamW([own.B, own.S], lr=0.1, weight_decay=0.5)
    part = Lamda(freeze=0.5)
    x = torch.randn(6, 14, dtype=torch.float64)
    A, columns = own.A.detach().clone(), []
    for step in range(8):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        run = Run(step, 8, model, attached.modules, optimizer, 0, lambda t: t)
        part.after_backward(run)
        before = own.S.detach().clone()
        optimizer.step()
        part.after_step(run)
        columns.append(own.B.detach().clone())
        assert not torch.equal(own.S, before)
    for step in range(1, 8):
        n = min(4, step)
        assert torch.equal(columns[step][:, :n], columns[step - 1][:, :n]), step
        assert (columns[step][:, n:] != columns[step - 1][:, n:]).all(), step
    assert own.B.grad is None, "only S is trained now"
    assert own.B not in optimizer.state
    assert torch.equal(own.A, A)


def test_the_released_factor_and_a_rank_beyond_the_layer() -> None:
    assert tiny.layer("lamda", 20, 14)[1].sites[0].scale == 0.25
    with pytest.raises(RecipeError, match="a 20 x 14 layer has no rank above 14: lower rank 15"):
        tiny.layer("lamda", 20, 14, rank=15)

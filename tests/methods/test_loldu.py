"""LoLDU: the triangles against the weight that they make, and the update between them."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (9, 9)])


@SHAPES
def test_the_whole_of_it_makes_the_weight(d: int, k: int) -> None:
    """With every pivot: P L is unit lower triangular up to its rows' order, U unit upper, and P L D U is W."""
    m = min(d, k)
    model, attached = tiny.layer("loldu", d, k, rank=m)
    adapter, W = attached.modules["0"], model[0].base.weight
    lower, upper = adapter.B, adapter.A
    assert torch.equal(upper.tril()[:, :m], torch.eye(m, dtype=W.dtype))
    order = lower.abs().argmax(dim=0).tolist()  # partial pivoting: no entry of L is larger than its diagonal
    assert len(set(order)) == m
    assert torch.allclose(lower[order].triu(), torch.eye(m, dtype=W.dtype))
    D = torch.linalg.lstsq(lower, W).solution.diagonal()  # L D U = W: the diagonal of D U
    assert torch.allclose(lower * D @ upper, W, atol=1e-10)


@SHAPES
def test_the_update_is_the_formula(d: int, k: int) -> None:
    model, attached = tiny.layer("loldu", d, k, alpha=3.0)
    tiny.disturb(list(attached.trained().values()), size=1.0)
    P, L, U = torch.linalg.lu(model[0].base.weight)
    unit = U / U.diagonal()[:, None]
    z = attached.modules["0"].gate
    dW = sum(3 / 4 * z[i] * torch.outer((P @ L)[:, i], unit[i]) for i in range(4))
    assert tiny.same_function(model, attached, dW)
    assert torch.linalg.matrix_rank(attached.delta("0")) == 4
    assert set(attached.trained()) == {"0.gate"}


def test_the_factor_is_one_over_the_rank_unless_alpha_says_otherwise() -> None:
    for more, scale in (({}, 0.25), ({"alpha": 8.0}, 2.0)):
        assert tiny.layer("loldu", 9, 9, **more)[1].sites[0].scale == scale


def test_a_weight_without_pivots_is_adapted_too() -> None:
    """Columns and rows that depend on others: the pivots behind them are zero or rounding."""
    model: Any = nn.Sequential(nn.Linear(9, 9)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.outer(torch.arange(9.0), torch.ones(9)))
    attached = lrft.attach(model, {"method": "loldu", "rank": 9})
    assert all(torch.isfinite(p).all() and p.abs().max() < 100 for p in attached.tensors().values())


def test_more_pivots_than_there_are_is_refused() -> None:
    with pytest.raises(RecipeError, match="a 20 x 14 layer has 14 pivots: lower rank 15"):
        tiny.layer("loldu", 20, 14, rank=15)

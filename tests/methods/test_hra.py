"""HRA against PEFT 0.21 and against the product of its reflections."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError

SHAPES = [(5, 8), (8, 5), (6, 6)]


def layer(d: int, k: int, rank: int = 4, *, size: float = 0.3) -> tuple[Any, Any]:
    """(model of one float64 layer, its adapter), U away from its start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": "hra", "rank": rank})
    tiny.disturb(list(attached.trained().values()), size=size)
    return model, attached.modules["0"]


def turn(U: Tensor) -> Tensor:
    """H (k, k), reflection by reflection."""
    H = torch.eye(len(U), dtype=U.dtype)
    for i in range(U.shape[1]):
        u = U[:, i : i + 1]
        H = H @ (torch.eye(len(U), dtype=U.dtype) - 2 * (u @ u.T) / (u.T @ u))
    return H


@pytest.mark.parametrize(("d", "k"), SHAPES)
@pytest.mark.parametrize("rank", [2, 4])
def test_weight_forward_and_gradients_are_those_of_the_product(d: int, k: int, rank: int) -> None:
    model, adapter = layer(d, k, rank)
    W, x = model[0].base.weight, torch.randn(3, 2, k, dtype=torch.float64, requires_grad=True)
    expected = W @ turn(adapter.U)
    assert torch.allclose(adapter.weight(W), expected, atol=1e-12)
    y = x @ expected.T + model[0].bias
    assert torch.allclose(model(x), y, atol=1e-12)
    found = torch.autograd.grad(model(x).square().sum(), [adapter.U, x])
    for one, other in zip(found, torch.autograd.grad(y.square().sum(), [adapter.U, x]), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_forward_gradient_merge_and_start_equal_peft() -> None:
    from peft import HRAConfig, get_peft_model

    def make() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(10, 12), nn.Tanh(), nn.Linear(12, 7))

    ours, theirs = make(), get_peft_model(make(), HRAConfig(r=4, target_modules=["0", "2"]))
    attached = lrft.attach(ours, {"method": "hra", "rank": 4})
    for name, adapter in attached.modules.items():
        other = theirs.base_model.model.get_submodule(name)
        torch.manual_seed(7)
        other.reset_hra_parameters("default")
        torch.manual_seed(7)
        assert torch.equal(type(adapter)(adapter.site).U, other.hra_u["default"])
        tiny.disturb([adapter.U], size=0.3)
        with torch.no_grad():
            other.hra_u["default"].copy_(adapter.U)
    x = torch.randn(5, 10)
    y = ours(x)
    assert torch.allclose(y, theirs(x), atol=1e-5)
    y.square().sum().backward()
    theirs(x).square().sum().backward()
    for name, adapter in attached.modules.items():
        other = theirs.base_model.model.get_submodule(name)
        assert torch.allclose(adapter.U.grad, other.hra_u["default"].grad, atol=1e-4)
        other.merge()
        assert torch.allclose(adapter.weight(ours.get_submodule(name).base.weight), other.weight, atol=1e-5)


def test_fresh_reflections_cancel() -> None:
    model, adapter = layer(5, 8, size=0)
    W = model[0].base.weight
    assert torch.allclose(adapter.weight(W), W, atol=1e-14)
    assert torch.equal(adapter.U[:, 0::2], adapter.U[:, 1::2])
    assert torch.linalg.matrix_rank(adapter.U) == 2


def test_the_turn_is_orthogonal_and_keeps_the_singular_values() -> None:
    model, adapter = layer(5, 8)
    H, W = adapter.weight(torch.eye(8, dtype=torch.float64)), model[0].base.weight
    assert torch.allclose(H @ H.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(adapter.weight(W)), torch.linalg.svdvals(W), atol=1e-12)
    assert (adapter.weight(W) - W).norm() > 0.1 * W.norm()


@pytest.mark.parametrize("rank", [2, 4])
def test_the_change_has_rank_r_at_most(rank: int) -> None:
    model, adapter = layer(20, 24, rank)
    W = model[0].base.weight
    assert torch.linalg.matrix_rank(adapter.weight(W) - W) == rank


def test_lengths_of_the_columns_do_not_matter() -> None:
    model, adapter = layer(5, 8)
    x = torch.randn(3, 8, dtype=torch.float64)
    before = model(x)
    with torch.no_grad():
        adapter.U.mul_(torch.tensor([0.1, 3.0, -2.0, 40.0]))
    assert torch.allclose(model(x), before, atol=1e-12)


def test_the_chain_in_reverse_undoes_the_merge() -> None:
    model, adapter = layer(5, 8)
    W = model[0].base.weight
    merged = adapter.weight(W)
    with torch.no_grad():
        adapter.U.copy_(adapter.U.flip(1))
    assert torch.allclose(adapter.weight(merged), W, atol=1e-12)


def test_a_small_turn_survives_rounding_to_bfloat16() -> None:
    """Of the plain compact form, a difference of large terms, half would be lost here."""
    _, adapter = layer(5, 64, 8, size=3e-4)
    exact = torch.eye(64, dtype=torch.float64) - turn(adapter.U)

    def error(left: Tensor, right: Tensor) -> float:
        rounded = left.bfloat16().double() @ right.bfloat16().double()
        return ((rounded - exact).norm() / exact.norm()).item()

    V, M = adapter.chain()
    assert error(V @ M, V.T) < 0.01
    U = adapter.U / adapter.U.norm(dim=0)
    T = torch.linalg.inv((U.T @ U).triu(1) + torch.eye(8, dtype=torch.float64) / 2)
    assert torch.allclose(U @ T @ U.T, exact, atol=1e-12)
    assert error(U @ T, U.T) > 0.1


def test_what_does_not_fit_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 5))
    with pytest.raises(RecipeError, match="rank 3 is odd, take 4"):
        lrft.attach(model, {"method": "hra", "rank": 3})
    with pytest.raises(RecipeError, match=r"hra requires adapter\.dropout: 0"):
        lrft.attach(model, {"method": "hra", "rank": 2, "dropout": 0.1})
    with pytest.raises(RecipeError, match="hra has no scaling factor"):
        lrft.attach(model, {"method": "hra", "rank": 2, "alpha": 8.0})

"""Bone against its blocks one by one, against PEFT's layer and against finite differences."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.pytorch_utils import Conv1D

import lrft
from lrft.errors import RecipeError
from lrft.model import linear

D, K, R = 12, 20, 4


def layer(base: nn.Module | None = None, **more: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(base or nn.Linear(K, D).double())
    attached = lrft.attach(model, {"method": "bone", "rank": R, **more})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    return model, attached


def dense(W: Tensor, D_: Tensor) -> Tensor:
    """The adapted weight of the formula, block by block."""
    r = D_.shape[1]
    V = W.detach().clone()
    for i in range(W.shape[0] // r):
        for j in range(W.shape[1] // r):
            rows, columns = slice(i * r, (i + 1) * r), slice(j * r, (j + 1) * r)
            V[rows, columns] += W[rows, columns] @ D_[i] + D_[i]
    return V


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, K, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(K, D), lambda: nn.Linear(K, D, bias=False), lambda: Conv1D(D, K)],
    ids=["linear", "no bias", "Conv1D"],
)  # fmt: skip
def test_weight_and_layer_are_the_formula(make: Any) -> None:
    model, attached = layer(make().double())
    adapter, base = attached.modules["0"], attached.layers()["0"].base
    V = dense(linear.dense(base), adapter.D.detach())
    assert (V - linear.dense(base)).abs().min() > 0
    assert (adapter.weight(linear.dense(base)) - V).abs().max() <= 1e-13
    for x in (inputs(5), inputs(2, 3), inputs(2, 1, 3)):
        assert (model(x) - nn.functional.linear(x, V, base.bias)).abs().max() <= 1e-12


def test_layer_and_merged_weight_are_those_of_peft() -> None:
    from peft import MissConfig, get_peft_model

    model, attached = layer(nn.Linear(K, D))
    adapter, base = attached.modules["0"], nn.Linear(K, D)
    base.load_state_dict(attached.layers()["0"].base.state_dict())
    theirs = get_peft_model(nn.Sequential(base), MissConfig(r=R, init_weights="bat", target_modules=["0"]))
    with torch.no_grad():
        theirs.base_model.model.get_submodule("0").miss_block["default"].copy_(adapter.D)
    found = []
    for each in (model, theirs):
        y = each(inputs(2, 3).float())
        y.square().sum().backward()
        found.append(y.detach())
    assert (found[0] - found[1]).abs().max() <= 1e-5
    slope = theirs.base_model.model.get_submodule("0").miss_block["default"].grad
    assert torch.allclose(adapter.D.grad, slope, rtol=1e-4, atol=1e-3)
    merged = theirs.merge_and_unload()[0].weight
    assert (adapter.weight(attached.layers()["0"].base.weight) - merged).abs().max() <= 1e-6


def test_what_is_left_of_the_change_without_d_is_the_product() -> None:
    _, attached = layer()
    adapter, W = attached.modules["0"], attached.layers()["0"].base.weight
    dW = attached.delta("0")
    for i, D_i in enumerate(adapter.D.detach()):
        for j in range(K // R):
            block = (slice(i * R, (i + 1) * R), slice(j * R, (j + 1) * R))
            assert torch.allclose(dW[block] - D_i, W[block] @ D_i, atol=1e-13)


def test_the_base_comes_back_from_the_adapted_weight() -> None:
    """W_ij = (V_ij - D_i) (I + D_i)^-1: the map is the affine one, and it loses nothing in float64."""
    _, attached = layer()
    adapter, W = attached.modules["0"], attached.layers()["0"].base.weight
    V = adapter.weight(W).detach()
    back = torch.cat([
        torch.cat([(block - D_i) @ torch.linalg.inv(torch.eye(R) + D_i) for block in row.split(R, 1)], 1)
        for row, D_i in zip(V.split(R), adapter.D.detach(), strict=True)
    ])  # fmt: skip
    assert torch.allclose(back, W, atol=1e-9)


def test_gradients_are_those_of_finite_differences() -> None:
    model, attached = layer()
    adapter, base = attached.modules["0"], attached.layers()["0"].base

    def run(x: Tensor, D_: Tensor) -> Tensor:
        return torch.func.functional_call(adapter, {"D": D_}, (x, base))

    assert torch.autograd.gradcheck(run, (inputs(2, 3).requires_grad_(), adapter.D))
    x = inputs(2, 3)  # the first layer's input asks for no gradient
    model(x).sum().backward()
    assert adapter.D.grad.abs().min() > 0


def test_no_matrix_of_the_size_of_the_weight_is_kept() -> None:
    model, _ = layer()
    kept: list[Tensor] = []
    with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(inputs(3).requires_grad_())
    assert kept
    assert not [t for t in kept if t.numel() >= D * K]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_half_precision_base_only_the_output_is_rounded(dtype: torch.dtype) -> None:
    model, attached = layer(nn.Linear(K, D).to(dtype))
    adapter, base = attached.modules["0"], attached.layers()["0"].base
    x = inputs(2, 3).to(dtype)
    exact = nn.functional.linear(x.float(), dense(linear.dense(base), adapter.D.detach()), base.bias.float())
    y = model(x)
    assert y.dtype == dtype
    assert torch.allclose(y.float(), exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    with torch.autocast("cpu", dtype=dtype):
        y = model(x.float())
        assert y.dtype == dtype
        y.sum().backward()
    assert torch.allclose(y.float(), exact, rtol=0, atol=20 * torch.finfo(dtype).eps * exact.abs().max())
    assert adapter.D.grad.dtype == torch.float32


def test_what_does_not_come_out_even_is_refused() -> None:
    for words, said in (({"rank": 8}, "block size 8 does not divide 12 outputs and 20 inputs.*divisor of 4"),
                        ({"method": {"bone": {"block": 3}}}, "block size 3"),
                        ({"method": {"bone": {"block": 5}}}, "block size 5")):  # fmt: skip
        with pytest.raises(RecipeError, match=said):
            layer(**words)


@pytest.mark.parametrize(("more", "said"), [
    ({"method": ["bone", "dora"]}, "dora requires an update that is added to the weight; bone has no such update"),
    ({"dropout": 0.1}, "bone requires adapter.dropout: 0"),
    ({"alpha": 2.0}, "bone has no scaling factor"),
])  # fmt: skip
def test_what_it_cannot_be_combined_with_is_refused(more: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        layer(**more)

"""DCFT against the transposed convolution of its paper."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

import lrft
from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k", "kernel"), [(6, 8, 2), (8, 6, 2), (12, 12, 3), (8, 24, 4), (5, 7, 1)])


def layer(d: int, k: int, kernel: int, **more: Any) -> tuple[Any, Any]:
    """(model of one float64 layer, handle), the trained tensors away from their start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": {"dcft": {"kernel": kernel}}, **more})
    tiny.disturb(list(attached.trained().values()), size=0.5)
    return model, attached


def deconvolved(adapter: Any, s: float) -> Tensor:
    """dW (d, k): a picture of one channel, (k / c, d / c), enlarged with stride c, then transposed."""
    a, b, C = adapter.a, adapter.b, adapter.C
    return s * conv_transpose2d((a.T @ b.T)[None, None], C[None, None], stride=len(C))[0, 0].T


@SHAPES
def test_update_forward_and_gradients_are_those_of_the_deconvolution(d: int, k: int, kernel: int) -> None:
    model, attached = layer(d, k, kernel, alpha=3.0)
    adapter, W = attached.modules["0"], model[0].base.weight
    dW = deconvolved(adapter, 3.0)
    assert torch.allclose(adapter.delta_weight(), dW, atol=1e-12)
    x = torch.randn(3, 2, k, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(adapter.delta(x), x @ dW.T, atol=1e-12)
    y = x @ (W + dW).T + model[0].bias
    assert torch.allclose(model(x), y, atol=1e-12)
    wanted = [adapter.a, adapter.b, adapter.C, x]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    for one, other in zip(found, torch.autograd.grad(y.square().sum(), wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-9)


@SHAPES
def test_rank_and_count(d: int, k: int, kernel: int) -> None:
    _, attached = layer(d, k, kernel)
    assert torch.linalg.matrix_rank(attached.delta("0")) == kernel
    assert sum(p.numel() for p in attached.trained().values()) == (d + k) // kernel + kernel**2


def test_the_factors_are_the_update() -> None:
    _, attached = layer(8, 24, 4)
    B, A, s = attached.modules["0"].factors()
    assert (B.shape, A.shape) == ((8, 4), (4, 24))
    assert torch.allclose(s * B @ A, attached.delta("0"), atol=1e-12)


def test_dropout_falls_on_the_input_of_the_update_only() -> None:
    model, attached = layer(6, 8, 2, dropout=0.5)
    adapter, W = attached.modules["0"], model[0].base.weight
    x = torch.randn(4, 8, dtype=torch.float64)
    model.train()
    torch.manual_seed(5)
    y = model(x)
    torch.manual_seed(5)
    dropped = nn.functional.dropout(x, 0.5)
    assert torch.allclose(y, x @ W.T + model[0].bias + dropped @ deconvolved(adapter, 32.0).T, atol=1e-12)


@pytest.mark.parametrize(("words", "s"), [({"rank": 3}, 32.0), ({"rank": 4, "alpha": 6.0}, 6.0), ({"scale": 0.5}, 0.5)])
def test_the_factor_is_alpha_whatever_the_rank(words: dict[str, Any], s: float) -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    assert lrft.attach(model, {"method": "dcft", **words}).modules["0"].site.scale == s


def test_first_values() -> None:
    torch.manual_seed(0)
    words = {"method": {"dcft": {"kernel": 40}}}
    adapter: Any = lrft.attach(nn.Sequential(nn.Linear(16000, 40)), words).modules["0"]
    assert adapter.a.std().item() == pytest.approx(0.02, rel=0.15)
    assert adapter.C.std().item() == pytest.approx(0.02, rel=0.1)
    assert not adapter.b.any()


def test_only_b_starts_at_zero() -> None:
    model = nn.Sequential(nn.Linear(8, 6))
    adapter = lrft.attach(model, {"method": "dcft"}).modules["0"]
    assert not adapter.b.any()
    assert adapter.a.all()
    assert adapter.C.all()
    assert (adapter.C.shape, adapter.site.scale) == ((2, 2), 32.0)


def test_a_kernel_that_does_not_divide_is_refused_with_one_that_does() -> None:
    model = nn.Sequential(nn.Linear(12, 18))
    with pytest.raises(RecipeError, match="kernel 4 does not divide 18 outputs and 12 inputs: use a divisor of 6"):
        lrft.attach(model, {"method": {"dcft": {"kernel": 4}}})
    lrft.attach(model, {"method": {"dcft": {"kernel": 6}}})
    for d, k in ((12, 10), (10, 12)):  # either side alone
        with pytest.raises(RecipeError, match=f"kernel 4 does not divide {d} outputs and {k} inputs"):
            lrft.attach(nn.Sequential(nn.Linear(k, d)), {"method": {"dcft": {"kernel": 4}}})

"""LoRS: zeros that stay, exact gradients, and the released ones."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

import lrft
from lrft.errors import RecipeError

BOTH = pytest.mark.parametrize("gradient", ["exact", "released"])


def pruned(gradient: str, share: float = 0.5, **more: Any) -> tuple[Any, Any]:
    """A layer with zeros, and trained tensors away from their start."""
    model, attached = tiny.layer({"lors": {"gradient": gradient}}, 20, 14, **more)
    with torch.no_grad():
        model[0].base.weight.mul_(torch.rand(20, 14) > share)
    tiny.disturb(list(attached.trained().values()))
    return model, attached


@BOTH
def test_zeros_stay_zero_and_all_else_is_lora(gradient: str) -> None:
    model, attached = pruned(gradient, alpha=6.0)
    own, W = attached.modules["0"], model[0].base.weight
    adapted, lora = own.weight(W), W + 1.5 * own.B @ own.A
    assert 0 < (W == 0).sum() < W.numel()
    assert torch.equal(adapted == 0, W == 0)
    assert torch.allclose(adapted[W != 0], lora[W != 0], atol=1e-14)
    x = torch.randn(3, 5, 14, dtype=torch.float64)
    assert torch.allclose(model(x), x @ adapted.T + model[0].base.bias, atol=1e-12)


def test_exact_gradients_are_autograds() -> None:
    model, attached = pruned("exact", alpha=6.0)
    own, W = attached.modules["0"], model[0].base.weight
    assert tiny.same_function(model, attached, 1.5 * (own.B @ own.A) * (W != 0))


def test_released_gradients_leave_out_the_mask_and_the_factor() -> None:
    model, attached = pruned("released", alpha=6.0)
    own, W = attached.modules["0"], model[0].base.weight
    x = torch.randn(6, 14, dtype=torch.float64, requires_grad=True)
    g = torch.randn(6, 20, dtype=torch.float64)
    model(x).backward(g)
    assert torch.allclose(own.B.grad, g.T @ (x @ own.A.T), atol=1e-12)
    assert torch.allclose(own.A.grad, (g @ own.B).T @ x, atol=1e-12)
    assert torch.allclose(x.grad, g @ own.weight(W), atol=1e-12), "the input's is exact"


@BOTH
def test_over_a_dense_weight_with_a_factor_of_one_it_is_lora(gradient: str) -> None:
    model, attached = pruned(gradient, share=0.0, alpha=4.0)
    own = attached.modules["0"]
    assert tiny.same_function(model, attached, own.B @ own.A)


@BOTH
def test_nothing_as_large_as_the_weight_is_kept_for_the_backward_pass(gradient: str) -> None:
    model, attached = pruned(gradient)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(torch.randn(3, 14, dtype=torch.float64))
    ours = {p.data_ptr() for p in (model[0].base.weight, *attached.trained().values())}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in ours] == [(3, 14)], "the input, and no more"


def test_dropout_and_quantisation_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"lors requires adapter\.dropout: 0"):
        lrft.attach(tiny.make("llama"), {"method": "lors", "dropout": 0.1})

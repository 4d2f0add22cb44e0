"""EDoRA against its formula, against its two parts, and against PEFT's DoRA in training."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError


def layer(words: Any = "edora", d: int = 9, k: int = 12, dtype: torch.dtype = torch.float64, **more: Any) -> Any:
    """(model of one layer, handle), the trained tensors away from their start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).to(dtype)
    attached = lrft.attach(model, {"method": words, "rank": 4, **more})
    tiny.disturb(list(attached.trained().values()), size=0.3)
    return model, attached


def formula(model: Any, attached: Any, scale: float) -> tuple[Tensor, Tensor]:
    """(V, W') from the leading singular vectors of W."""
    W, own = model[0].base.weight.detach(), attached.modules["0"].tensors()
    U, S, Vh = torch.linalg.svd(W)
    # Signs of singular vectors are free, but U and V share them; R is read in the adapter's own.
    signs = (U[:, :4] * own["B"]).sum(dim=0).sign()
    B, A = U[:, :4] * signs, signs[:, None] * S[:4, None] * Vh[:4]
    V = W + scale * B @ own["R"] @ A
    return V.detach(), (own["magnitude"][:, None] / V.norm(dim=1, keepdim=True) * V).detach()


@pytest.mark.parametrize(("d", "k"), [(9, 12), (12, 9)])
def test_the_adapted_weight_is_that_of_the_formula(d: int, k: int) -> None:
    model, attached = layer(d=d, k=k)
    adapter, W = attached.modules["0"], model[0].base.weight
    V, expected = formula(model, attached, 16 / 4)
    assert torch.allclose(adapter.weight(W), expected, atol=1e-10)
    x = torch.randn(5, k, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(model(x), x @ expected.T + model[0].bias, atol=1e-10)
    assert torch.allclose(adapter.norms(model[0].base), V.norm(dim=1), rtol=1e-10), "without V being made"
    assert torch.allclose(expected.norm(dim=1), adapter.tensors()["magnitude"].abs(), rtol=1e-10)
    assert torch.linalg.matrix_rank(V - W) == 4


def test_it_is_lora_xs_with_dora_and_another_alpha() -> None:
    for svd in ("randomized", "exact"):
        _, one = layer({"edora": {"svd": svd}})
        _, other = layer([{"lora-xs": {"svd": svd}}, "dora"], alpha=16.0)
        own, theirs = one.state_dict(), other.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[name], theirs[name]) for name in own)
        assert torch.equal(one.delta("0"), other.delta("0"))


def test_fresh_is_the_base_and_only_core_and_lengths_are_trained() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "edora", "rank": 4})
    assert {name.rsplit(".", 1)[-1] for name in attached.trained()} == {"R", "magnitude"}
    model(input_ids=ids, labels=ids).loss.backward()
    for name, p in attached.trained().items():
        assert p.any() == name.endswith("magnitude"), name
        assert p.grad.abs().max() > 0, "R = 0 is no saddle: A and B are not zero"


def test_forward_and_gradients_are_those_of_pefts_dora() -> None:
    from peft import LoraConfig, get_peft_model

    model, attached = layer(dtype=torch.float32)
    own = attached.modules["0"].tensors()
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["0"], use_dora=True)
    theirs = get_peft_model(nn.Sequential(nn.Linear(12, 9)), config)
    stock: Any = theirs.base_model.model[0]
    with torch.no_grad():
        stock.lora_A["default"].weight.copy_(own["A"])
        stock.lora_B["default"].weight.copy_(own["B"] @ own["R"])
        stock.lora_magnitude_vector["default"].weight.copy_(own["magnitude"])
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(3))
    y, expected = model.train()(x), theirs.train()(x)
    assert torch.allclose(y, expected, atol=1e-5)
    y.square().sum().backward()
    expected.square().sum().backward()
    of_B = stock.lora_B["default"].weight.grad
    assert torch.allclose(own["R"].grad, own["B"].T @ of_B, rtol=1e-4, atol=1e-4)
    assert torch.allclose(
        own["magnitude"].grad, stock.lora_magnitude_vector["default"].weight.grad, rtol=1e-4, atol=1e-4
    )


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(RecipeError, match="edora and dora both"):
        lrft.attach(tiny.make("llama"), {"method": ["edora", "dora"], "rank": 2})
    with pytest.raises(RecipeError, match="lower rank 30"):
        lrft.attach(nn.Sequential(nn.Linear(12, 9)), {"method": "edora", "rank": 30})

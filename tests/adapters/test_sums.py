"""(W + dW) x in place of W x + dW x: the same values and gradients, where it is the cheaper one and loses nothing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters.adapter import AdapterLinear, Site
from lrft.methods.fourierft import FourierftAdapter
from lrft.methods.randlora import RandloraAdapter
from lrft.model import fused_linear

K, D = 12, 8
METHODS: dict[str, Any] = {
    "shira": "shira",
    "sltrain": "sltrain",
    "waveft": {"waveft": {"n_frequency": 40}},
    "randlora": "randlora",
    "fourierft": {"fourierft": {"frequencies": 40}},
    "dota": "dota",
    "flora-batched": "flora-batched",
}


def layer(name: str) -> AdapterLinear:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(K, D).double())
    attached = lrft.attach(model, {"method": METHODS[name], "rank": 2}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    return model[0]  # type: ignore[return-value]


def answers(adapted: AdapterLinear, x: Tensor) -> list[Tensor]:
    own = x.detach().clone().requires_grad_()
    y = adapted(own)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), [own, *trained])]


@pytest.mark.parametrize("name", METHODS)
def test_the_sum_gives_what_two_products_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted = layer(name)
    x = torch.randn(3, 5, K, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made, sums = [], fused_linear.linear_plus_made
    monkeypatch.setattr(fused_linear, "linear_plus_made", lambda *given: made.append(1) or sums(*given))
    monkeypatch.setattr(type(adapted.adapter), "sums_from", lambda self: 0, raising=False)
    summed = answers(adapted, x)
    assert made
    monkeypatch.setattr(fused_linear, "is_plain", lambda base: False)
    for got, wanted in zip(summed, answers(adapted, x), strict=True):
        assert got.abs().max() > 0
        assert torch.allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_thick_factors_are_multiplied_for_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 64 of a layer of 96 x 80: dW x would be dearer than the sum from 53 vectors on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 80).double())
    attached = lrft.attach(model, {"method": "lora", "rank": 64}, seed=0)
    tiny.disturb(list(attached.trained().values()))
    made, sums = [], fused_linear.linear_plus_made
    monkeypatch.setattr(fused_linear, "linear_plus_made", lambda *given: made.append(1) or sums(*given))
    few, many = (torch.randn(n, 96, dtype=torch.float64) for n in (20, 100))
    model(few)
    assert not made
    summed = answers(model[0], many)
    assert made == [1]
    monkeypatch.setattr(fused_linear, "is_plain", lambda base: False)
    for got, wanted in zip(summed, answers(model[0], many), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "flora-batched"])
def test_few_bits_take_two_products(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 has eight bits: a dW of a thousandth of W would be gone in the sum."""
    adapted = layer(name).float()
    monkeypatch.setattr(type(adapted.adapter), "sums_from", lambda self: 0)
    x = torch.randn(5, K)
    assert adapted.adapter.sums(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not adapted.adapter.sums(x)
    assert not adapted.adapter.sums(x.bfloat16())


def test_many_vectors_and_small_layers_take_the_sum() -> None:
    def site(side: int) -> Site:
        return Site("x", side, side, 16, 1.0, 0)

    def transform(side: int) -> float:
        return FourierftAdapter(site(side), torch.arange(1000), 1.0).sums_from()

    assert 100 < RandloraAdapter(site(576), by_count=False).sums_from() < 1000
    assert 10 < transform(576) < 1000
    assert transform(4096) > 2048
    assert transform(16384) == math.inf

"""ResLoRA's block shortcut: each layer's pairs, who trains them, and chains of one kind."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft


def chain(previous: int, layers: int = 4, **more: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(*(nn.Linear(6, 6) for _ in range(layers))).double()
    attached = lrft.attach(model, {"method": {"reslora": {"previous": previous}}, "rank": 2, "alpha": 3.0, **more})
    tiny.disturb(list(attached.trained().values()))
    return model, attached


def product(pair: Any) -> Tensor:
    dW: Tensor = 1.5 * pair.B @ pair.A
    return dW


@pytest.mark.parametrize("previous", [0, 1, 2, 9])
def test_a_layer_adds_the_pairs_of_those_before_it(previous: int) -> None:
    model, attached = chain(previous)
    pairs = attached.shared["6x6-2"].pairs
    x = torch.randn(5, 6, dtype=torch.float64)
    for n, layer in enumerate(model):
        dW = sum(product(pairs[i]) for i in range(max(0, n - previous), n + 1))
        assert torch.allclose(attached.delta(str(n)), dW, atol=1e-12)
        assert torch.allclose(layer(x), x @ (layer.base.weight + dW).T + layer.base.bias, atol=1e-12)


def test_a_pair_is_trained_by_every_layer_that_uses_it() -> None:
    """Gradients against those of dense weights: layer n's pair by layers n to n + p."""
    model, attached = chain(2)
    pairs = attached.shared["6x6-2"].pairs
    x = torch.randn(5, 6, dtype=torch.float64)
    model(x).square().sum().backward()
    found = {name: p.grad for name, p in attached.trained().items()}
    y = x
    for n, layer in enumerate(model):
        dW = sum(product(pairs[i]) for i in range(max(0, n - 2), n + 1))
        y = y @ (layer.base.weight + dW).T + layer.base.bias
    right = torch.autograd.grad(y.square().sum(), list(attached.trained().values()))
    for (name, one), other in zip(found.items(), right, strict=True):
        assert torch.allclose(one, other, atol=1e-10), name


def test_a_chain_is_of_one_kind_shape_and_rank() -> None:
    attached = lrft.attach(
        tiny.make("llama"), {"method": "reslora", "rank": 2, "overrides": {"1.self_attn.v_proj": {"rank": 3}}}
    )
    lengths = {key: len(chain.pairs) for key, chain in attached.shared.items()}
    assert lengths["model-layers-self_attn-q_proj-24x24-2"] == 2
    assert lengths["model-layers-self_attn-v_proj-12x24-2"] == 1
    assert lengths["model-layers-self_attn-v_proj-12x24-3"] == 1
    assert sum(lengths.values()) == len(attached.sites)
    expected = sum(site.rank * (site.d + site.k) for site in attached.sites)
    assert sum(p.numel() for p in attached.trained().values()) == expected

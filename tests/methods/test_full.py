"""Full fine-tuning is the training of the weight itself, by stock torch."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft.adapters.adapter import AdapterLinear, Site
from lrft.methods.full import FullAdapter
from lrft.model import linear


@pytest.mark.parametrize("model_name", ["llama", "gpt2"])
def test_it_trains_what_stock_adamw_trains(model_name: str) -> None:
    ours, theirs, ids = tiny.make(model_name).double(), tiny.make(model_name).double(), tiny.tokens()
    attached = lrft.attach(ours, {"method": "full"})
    theirs.requires_grad_(False)
    weights = {name: theirs.get_parameter(f"{name}.weight").requires_grad_() for name in attached.modules}
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.0}
    pairs = [
        (ours, torch.optim.AdamW(attached.trained().values(), **options)),
        (theirs, torch.optim.AdamW(weights.values(), **options)),
    ]
    losses: list[list[float]] = [[], []]
    for _ in range(6):
        for (model, optimizer), said in zip(pairs, losses, strict=True):
            optimizer.zero_grad()
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            said.append(loss.item())
    assert losses[0][-1] < 0.97 * losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    for name, layer in attached.layers().items():
        trained = layer.adapter.weight(linear.dense(layer.base))
        assert torch.allclose(trained, linear.dense(theirs.get_submodule(name)), rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_it_is_the_layer_with_the_summed_weight(dtype: torch.dtype, base_dtype: torch.dtype) -> None:
    """Bit for bit what autocast makes of a float32 weight: the sum is made in float32 and rounded once."""
    torch.manual_seed(0)
    base = nn.Linear(24, 16).to(base_dtype).requires_grad_(False)
    adapter = FullAdapter(Site("site", 16, 24, 4))
    tiny.disturb([adapter.D])
    layer = AdapterLinear(base, adapter)
    stock = nn.Linear(24, 16)
    with torch.no_grad():
        stock.weight.copy_(base.weight.float() + adapter.D)
        stock.bias.copy_(base.bias)
    found = []
    for made, trained in ((layer, adapter.D), (stock, stock.weight)):
        x = torch.randn(5, 3, 24, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", dtype=dtype):
            y = made(x)
        y.float().square().sum().backward()
        found.append((y, x.grad, trained.grad))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_a_step_too_small_for_the_base_is_not_lost() -> None:
    """Over a bfloat16 base the change is float32: small steps add up, which bfloat16 weights would round away."""
    base = nn.Linear(8, 8).to(torch.bfloat16).requires_grad_(False)
    adapter = FullAdapter(Site("site", 8, 8, 4))
    with torch.no_grad():
        base.weight.fill_(1.0)
    optimizer = torch.optim.SGD([adapter.D], lr=1e-4)
    for _ in range(1000):
        adapter.D.grad = torch.full_like(adapter.D, -1.0)
        optimizer.step()
    assert torch.allclose(adapter.weight(base.weight), torch.full((8, 8), 1.1), atol=1e-4)


def test_weight_decay_draws_towards_the_base() -> None:
    adapter = FullAdapter(Site("site", 8, 6, 4))
    tiny.disturb([adapter.D])
    before = adapter.D.detach().clone()
    adapter.D.grad = torch.zeros_like(adapter.D)
    torch.optim.AdamW([adapter.D], lr=0.1, weight_decay=0.5).step()
    assert torch.allclose(adapter.D, 0.95 * before)

"""OLoRA: the start against the full decomposition and PEFT's, and what its factor means."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import composition_warnings
from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (12, 12), (5, 9), (9, 5)])


def one(d: int, k: int, **more: Any) -> tuple[Tensor, Any]:
    """(W, the adapter of a float64 layer), rank 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": "olora", "rank": 4, **more})
    return model[0].base.weight.detach(), attached.modules["0"]


@SHAPES
@pytest.mark.parametrize("alpha", ["auto", 6.0])
def test_the_start_is_that_of_the_full_decomposition(d: int, k: int, alpha: float | str) -> None:
    W, adapter = one(d, k, alpha=alpha)
    A, B = adapter.inner.A.detach(), adapter.inner.B.detach()
    Q, R = torch.linalg.qr(W)
    assert torch.allclose(B, Q[:, :4], atol=1e-12)
    assert torch.allclose(A, R[:4], atol=1e-12)
    assert torch.allclose(B.T @ B, torch.eye(4, dtype=W.dtype), atol=1e-12)
    assert torch.equal(A, A.triu()), "upper trapezoidal"
    assert torch.allclose((B @ A)[:, :4], W[:, :4], atol=1e-12)
    assert adapter.site.scale == (1.0 if alpha == "auto" else 1.5)


@SHAPES
def test_fresh_is_the_weight_and_counting_goes_from_the_start(d: int, k: int) -> None:
    W, adapter = one(d, k, alpha=6.0)
    assert torch.equal(adapter.weight(W), W)
    s, A0, B0 = adapter.site.scale, adapter.inner.A.detach().clone(), adapter.inner.B.detach().clone()
    tiny.disturb([p for p in adapter.parameters() if p.requires_grad])
    rest = W - s * B0 @ A0
    assert torch.allclose(rest + s * B0 @ A0, W, atol=1e-12)
    assert torch.allclose(adapter.weight(W), rest + s * adapter.inner.B @ adapter.inner.A, atol=1e-12)


def test_first_values_and_forward_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj", "k_proj"]
    model = tiny.make("llama")
    ours = lrft.attach(model, {"method": "olora", "rank": 4, "alpha": 8.0, "target_modules": targets})
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights="olora")
    theirs = get_peft_model(tiny.make("llama"), config)
    generator = torch.Generator().manual_seed(5)
    for name, adapter in ours.modules.items():
        layer = theirs.base_model.model.get_submodule(name)
        assert adapter.site.scale == layer.scaling["default"]
        pairs = ((adapter.inner.A, layer.lora_A["default"].weight), (adapter.inner.B, layer.lora_B["default"].weight))
        for mine, other in pairs:
            assert torch.allclose(mine, other, atol=1e-5), name
            change = 0.1 * torch.randn(mine.shape, generator=generator)
            with torch.no_grad():
                mine.add_(change)
                other.add_(change)
    ids = tiny.tokens()
    expected = tiny.logits(theirs, ids)
    assert torch.allclose(tiny.logits(model, ids), expected, atol=1e-3 * expected.abs().max().item())
    assert not torch.allclose(tiny.logits(tiny.make("llama"), ids), expected, atol=0.1 * expected.abs().max().item())


def test_a_weight_of_lower_rank_starts_finite_and_orthonormal() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(8, 8))
    adapter = lrft.attach(model, {"method": "olora", "rank": 4}).modules["0"]
    A, B = adapter.inner.A.detach(), adapter.inner.B.detach()
    assert torch.allclose(B.T @ B, torch.eye(4), atol=1e-6)
    assert torch.allclose(B @ A, torch.ones(8, 8), atol=1e-5)


def test_refused_with_dropout_mora_another_start_and_beyond_the_layer() -> None:
    for words, sentence in (
        ({"method": "olora", "dropout": 0.1}, "olora requires adapter.dropout: 0, got 0.1"),
        ({"method": ["mora", "olora"]}, "olora requires a pair of factors A and B"),
        ({"method": ["pissa", "olora"]}, "pissa and olora both set the init of A and B"),
        ({"method": "olora", "rank": 13}, r"k_proj: rank 13 is larger than the layer's smaller side, 12"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)


def test_advice_above_a_factor_of_two() -> None:
    composition = compose.compose([("olora", {})])
    for scale, said in ((2.5, 1), (2.0, 0)):
        sites = [Site("a", 4, 4, 2, scale=1.0), Site("b", 4, 4, 2, scale=scale)]
        found = composition_warnings(composition, sites, nn.Linear(4, 4))
        assert len(found) == said
        assert all("2.5 here" in text for text in found)

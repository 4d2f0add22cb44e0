"""LoRA-XS: the frozen factors against the decomposition, where its update lives, and its first step."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import nn

import lrft
from lrft.adapters import compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import build_site, count_trained
from lrft.errors import RecipeError

EXACT = {"lora-xs": {"svd": "exact"}}
SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (4, 9)])
WORDS = pytest.mark.parametrize("words", ["lora-xs", EXACT], ids=str)


def layer(d: int, k: int, words: Any = "lora-xs", **more: Any) -> tuple[nn.Module, Any]:
    """(model of one float64 layer, handle), rank 4."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    return model, lrft.attach(model, {"method": words, "rank": 4, **more})


@SHAPES
@WORDS
def test_frozen_factors_are_the_leading_part_of_the_weight(d: int, k: int, words: Any) -> None:
    model, attached = layer(d, k, words)
    adapter, W = attached.modules["0"], model[0].base.weight
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    A, B = adapter.A, adapter.B
    assert not A.requires_grad
    assert not B.requires_grad
    assert torch.allclose(B.T @ B, torch.eye(4, dtype=W.dtype), atol=1e-12)
    assert torch.allclose(A @ A.T, torch.diag(S[:4].square()), atol=1e-8)
    assert torch.allclose(B @ A, U[:, :4] @ torch.diag(S[:4]) @ Vh[:4], atol=1e-8)
    assert torch.equal(attached.delta("0"), torch.zeros_like(W))


@SHAPES
def test_the_update_and_the_forward_are_the_formula(d: int, k: int) -> None:
    model, attached = layer(d, k, EXACT, alpha=6.0)
    tiny.disturb(list(attached.trained().values()))
    adapter, W = attached.modules["0"], model[0].base.weight
    R = adapter.R.detach()
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    sign = (U[:, :4] * adapter.B).sum(0).sign()
    U4, V4 = U[:, :4] * sign, Vh[:4] * sign[:, None]
    dW = torch.zeros(d, k, dtype=W.dtype)
    for i in range(4):
        for j in range(4):
            dW += 6.0 / 4 * R[i, j] * S[j] * torch.outer(U4[:, i], V4[j])
    assert torch.allclose(attached.delta("0"), dW, atol=1e-10)
    x = torch.randn(5, k, dtype=W.dtype, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(model(x), x @ (W + dW).T + model[0].bias, atol=1e-10)
    assert torch.linalg.matrix_rank(dW) == 4
    assert (dW - U4 @ U4.T @ dW).abs().max() <= 1e-12, "columns within those of U"
    assert (dW - dW @ V4.T @ V4).abs().max() <= 1e-12, "rows within those of V'"


def test_the_factor_is_one_unless_alpha_says_otherwise() -> None:
    for more, scale in (({}, 1.0), ({"alpha": 8.0}, 2.0), ({"scale": 0.5}, 0.5)):
        assert layer(9, 9, **more)[1].sites[0].scale == scale
    assert layer(9, 9, ["lora-xs", "rslora"], alpha=8.0)[1].sites[0].scale == 4.0


def test_the_first_step_moves_the_matrix_from_zero() -> None:
    model, ids = tiny.make("llama").train(), tiny.tokens()
    attached = lrft.attach(model, {"method": "lora-xs", "rank": 2})
    model(input_ids=ids, labels=ids).loss.backward()
    for name, R in attached.trained().items():
        assert name.endswith(".R")
        assert not R.any(), name
        assert R.grad.abs().max() > 0, name


def test_a_saved_adapter_is_never_decomposed_again() -> None:
    """Randomised vectors would come out differently, and so would the sign of each."""
    _, attached = layer(20, 14)
    tiny.disturb(list(attached.trained().values()))
    site, composition = attached.sites[0], compose.compose([("lora-xs", {})])
    again = build_site(site, composition, None, fresh=False, seed=99)
    again.load(attached.modules["0"].tensors())
    assert torch.equal(again.delta_weight(), attached.delta("0"))
    assert set(again.tensors()) == {"A", "B", "R"}


def test_numbers_trained_in_llama_2_7b() -> None:
    composition = compose.compose([("lora-xs", {})])
    shapes = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    sites = [Site(f"{i}", d, k, 64) for i, (d, k) in enumerate(shapes)]
    with torch.device("meta"):
        assert 32 * count_trained(sites, composition) == 32 * 7 * 64 * 64


def test_refused_beyond_the_layer_and_with_what_needs_a_trained_pair() -> None:
    for words, sentence in (
        ({"method": "lora-xs", "rank": 13}, r"k_proj: a 12 x 24 layer has 12 singular vectors: lower rank 13"),
        ({"method": ["lora-xs", "pissa"]}, "pissa requires a pair"),
        ({"method": ["lora-xs", "lora+"]}, "lora\\+ requires a pair"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)

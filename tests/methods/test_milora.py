"""MiLoRA: the start against the full decomposition, and a weight that has no smallest directions."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError

SHAPES = pytest.mark.parametrize(("d", "k"), [(20, 14), (14, 20), (12, 12)])
RANK = 4


def one(W: Tensor, words: Any = "milora", **more: Any) -> Any:
    """The adapter of a layer of weight W."""
    model = nn.Sequential(nn.Linear(W.shape[1], W.shape[0], bias=False)).to(W.dtype)
    with torch.no_grad():
        model[0].weight.copy_(W)
    return lrft.attach(model, {"method": words, "rank": RANK, **more}).modules["0"]


def weight(d: int, k: int) -> Tensor:
    return torch.randn(d, k, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@SHAPES
@pytest.mark.parametrize(
    ("words", "alpha", "s"), [("milora", "auto", 1.0), ("milora", 8.0, 2.0), (["milora", "rslora"], 8.0, 4.0)]
)
def test_the_start_is_the_trailing_part_of_the_weight(d: int, k: int, words: Any, alpha: float | str, s: float) -> None:
    W = weight(d, k)
    adapter = one(W, words, alpha=alpha)
    A, B = adapter.inner.A.detach(), adapter.inner.B.detach()
    assert adapter.site.scale == s
    U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    first = min(d, k) - RANK
    rest = W - s * B @ A
    assert torch.allclose(rest, U[:, :first] @ torch.diag(S[:first]) @ Vh[:first], atol=1e-12)
    assert torch.allclose(torch.linalg.svdvals(rest)[:first], S[:first], rtol=1e-10)
    assert torch.linalg.matrix_norm(s * B @ A, ord=2).item() == pytest.approx(S[first].item(), rel=1e-10)
    assert (U[:, :first].T @ B).abs().max() <= 1e-12, "orthogonal to the leading directions"
    assert (Vh[:first] @ A.T).abs().max() <= 1e-12
    balance = torch.diag(S[first:] / s)
    assert torch.allclose(A @ A.T, balance, atol=1e-12)
    assert torch.allclose(B.T @ B, balance, atol=1e-12)


@SHAPES
def test_fresh_is_the_weight_and_counting_goes_from_the_start(d: int, k: int) -> None:
    W = weight(d, k)
    adapter = one(W, alpha=6.0)
    assert torch.equal(adapter.weight(W), W)
    s = adapter.site.scale
    rest = W - s * adapter.inner.B.detach() @ adapter.inner.A.detach()
    tiny.disturb([p for p in adapter.parameters() if p.requires_grad])
    assert torch.allclose(adapter.weight(W), rest + s * adapter.inner.B @ adapter.inner.A, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank_of_W", [0, 9, 11])
def test_directions_that_the_weight_lacks_can_still_be_trained(rank_of_W: int, dtype: torch.dtype) -> None:
    left, right = weight(12, rank_of_W), weight(rank_of_W, 16)
    W = (left @ right).to(dtype)
    adapter = one(W, alpha=8.0)
    A, B = adapter.inner.A, adapter.inner.B
    lacking = min(RANK, 12 - rank_of_W)
    assert torch.equal(adapter.weight(W), W)
    assert torch.allclose(A[-lacking:].norm(dim=1), torch.ones(lacking, dtype=dtype), atol=1e-5)
    assert not B[:, RANK - lacking :].any()
    assert (B[:, : RANK - lacking].abs().amax(0) > 1e-3).all(), "those that it has are its own"
    (adapter.weight(W) - weight(12, 16).to(dtype)).square().sum().backward()
    moved = (B.grad.abs().amax(0) > 1e-3) | (A.grad.abs().amax(1) > 1e-3)
    assert moved.all()


def test_dropout_leaves_a_fresh_model_alone_and_is_allowed() -> None:
    model, ids = tiny.make("llama"), tiny.tokens()
    before = tiny.logits(model, ids)
    attached = lrft.attach(model, {"method": "milora", "rank": 3, "dropout": 0.5})
    model.train()
    assert torch.allclose(tiny.logits(model, ids), before, atol=1e-5)
    tiny.disturb(list(attached.trained().values()))
    assert not torch.equal(tiny.logits(model, ids), tiny.logits(model, ids))


def test_refused_with_mora_another_start_and_beyond_the_layer() -> None:
    for words, sentence in (
        ({"method": ["mora", "milora"]}, "milora requires a pair of factors A and B"),
        ({"method": ["pissa", "milora"]}, "pissa and milora both set the init of A and B"),
        ({"method": "milora", "rank": 13}, r"k_proj: rank 13 is larger than the layer's smaller side, 12"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(tiny.make("llama"), words)

"""FLoRA against the dense Hadamard product of its paper."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError


def layer(d: int, k: int, rank: int, *, size: float = 0.3) -> tuple[Any, Any, Tensor, Tensor]:
    """(model of one float64 layer, its adapter, A and B of the formula), the trained tensors away from their start."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(k, d)).double()
    attached = lrft.attach(model, {"method": "flora-batched", "rank": rank})
    tiny.disturb(list(attached.trained().values()), size=size)
    adapter = attached.modules["0"]
    A, B = adapter.A.clone(), adapter.B.clone()
    A[0] += 1
    B[:, 0] += rank
    return model, adapter, A, B


@pytest.mark.parametrize(("d", "k"), [(5, 8), (8, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3])
def test_weight_forward_and_gradients_are_those_of_the_formula(d: int, k: int, rank: int) -> None:
    model, adapter, A, B = layer(d, k, rank)
    W, x = model[0].base.weight, torch.randn(3, 2, k, dtype=torch.float64, requires_grad=True)
    expected = W * (B @ A) / rank
    assert torch.allclose(adapter.weight(W), expected, atol=1e-12)
    y = x @ expected.T + model[0].bias
    assert torch.allclose(model(x), y, atol=1e-12)
    wanted = [adapter.A, adapter.B, x]
    found = torch.autograd.grad(model(x).square().sum(), wanted)
    for one, other in zip(found, torch.autograd.grad(y.square().sum(), wanted), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


def test_rank_one_scales_rows_and_columns() -> None:
    model, adapter, A, B = layer(5, 8, 1)
    W = model[0].base.weight
    assert torch.allclose(adapter.weight(W), torch.diag(B[:, 0]) @ W @ torch.diag(A[0]), atol=1e-12)


@pytest.mark.parametrize("rank", [1, 4])
def test_the_start_is_the_base_and_weight_decay_leads_back_to_it(rank: int) -> None:
    model, adapter, _, _ = layer(5, 8, rank, size=0)
    W = model[0].base.weight
    assert torch.allclose(adapter.weight(W), W, atol=1e-15)
    assert adapter.A[1:].all(), "else the other ranks would never learn"
    tiny.disturb([adapter.A, adapter.B])
    assert not torch.allclose(adapter.weight(W), W, atol=1e-2)
    optimizer = torch.optim.AdamW([adapter.A, adapter.B], lr=0.1, weight_decay=1.0)
    for _ in range(400):
        adapter.A.grad, adapter.B.grad = torch.zeros_like(adapter.A), torch.zeros_like(adapter.B)
        optimizer.step()
    assert torch.allclose(adapter.weight(W), W, atol=1e-12)


def test_first_values_and_the_dtype_of_the_output() -> None:
    """Kaiming's rule with a = sqrt(5): within +-1/sqrt(k). The first row is the start's, the others see the data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 5))
    adapter: Any = lrft.attach(model, {"method": "flora-batched", "rank": 9}).modules["0"]
    assert not adapter.A[0].any()
    assert not adapter.B.any()
    assert 0.99 * 400**-0.5 < adapter.A.abs().max() <= 400**-0.5
    assert adapter.A[1:].std().item() == pytest.approx(1200**-0.5, rel=0.05)
    x = torch.randn(3, 400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_a_weight_of_zero_stays_zero() -> None:
    model, adapter, _, _ = layer(5, 8, 2)
    with torch.no_grad():
        model[0].base.weight[2, 3] = 0
    merged = adapter.weight(model[0].base.weight)
    assert merged[2, 3] == 0
    assert merged.count_nonzero() == 39


def test_numbers_trained() -> None:
    _, adapter, _, _ = layer(5, 8, 3)
    assert sum(p.numel() for p in adapter.parameters() if p.requires_grad) == 3 * (5 + 8)


def test_what_does_not_fit_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 5))
    with pytest.raises(RecipeError, match=r"flora-batched requires adapter\.dropout: 0"):
        lrft.attach(model, {"method": "flora-batched", "rank": 2, "dropout": 0.1})
    with pytest.raises(RecipeError, match="flora-batched has no scaling factor"):
        lrft.attach(model, {"method": "flora-batched", "rank": 2, "alpha": 8.0})

"""Comp-LoRA: what the update leaves alone, against dense decompositions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lrft
from lrft.errors import RecipeError


def attached(options: object, rank: int = 2) -> tuple[nn.Linear, object, Tensor]:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(9, 7)).double()
    found = lrft.attach(layers, {"method": {"comp-lora": options}, "rank": rank})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in found.trained().values():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 9)
    return layers[0].base, found, found.delta("0")


@pytest.mark.parametrize("side", ["both", "in", "out"])
def test_the_leading_directions_are_left_alone(side: str) -> None:
    base, _, dW = attached({"directions": 3, "side": side})
    U, S, Vh = torch.linalg.svd(base.weight)
    assert (U[:, :3].T @ dW).abs().max().item() < 1e-12 or side == "in"
    assert (dW @ Vh[:3].T).abs().max().item() < 1e-12 or side == "out"
    assert dW.abs().max() > 1e-3
    assert torch.linalg.matrix_norm(dW, 2) < S[2]
    if side == "both":
        now = torch.linalg.svd(base.weight + dW)
        assert torch.allclose(now.S[:3], S[:3], rtol=1e-10)
        assert torch.allclose((now.Vh[:3] * Vh[:3]).sum(dim=1).abs(), torch.ones(3).double(), rtol=1e-10)


def test_with_no_directions_it_is_lora() -> None:
    _, found, dW = attached({"directions": 0})
    own = found.modules["0"].tensors()
    assert torch.equal(dW, found.sites[0].scale * own["B"] @ own["A"])


def test_gradients_are_those_of_the_projected_factors() -> None:
    base, found, _ = attached({})
    own = found.modules["0"].tensors()
    G = torch.randn(7, 9, dtype=torch.float64)
    (found.modules["0"].delta_weight() * G).sum().backward()
    U, _, Vh = torch.linalg.svd(base.weight)
    P, Q = torch.eye(7).double() - U[:, :2] @ U[:, :2].T, torch.eye(9).double() - Vh[:2].T @ Vh[:2]
    s = found.sites[0].scale
    assert torch.allclose(own["A"].grad, s * own["B"].T @ P @ G @ Q, atol=1e-12)
    assert torch.allclose(own["B"].grad, s * P @ G @ Q @ own["A"].T, atol=1e-12)


def test_too_many_directions_are_refused() -> None:
    with pytest.raises(RecipeError, match="has 7 singular directions: directions must be fewer"):
        attached({"directions": 7})

"""LoFT: what its moments are, and where it is AdamW of the weight."""

from __future__ import annotations

import pairs
import pytest
import torch

from lrft.errors import RecipeError
from lrft.methods.loft import LoftAdamW


def test_with_a_square_partner_it_is_adamw_of_the_weight() -> None:
    """B's steps with A held: with as many rows as inputs nothing is projected away."""
    A, B = torch.randn(5, 5, dtype=torch.float64), torch.zeros(7, 5, dtype=torch.float64)
    W = torch.nn.Parameter(torch.zeros(7, 5, dtype=torch.float64))
    adam = torch.optim.AdamW([W], lr=0.01, eps=1e-4, weight_decay=0.0)
    loft, state = LoftAdamW([{"params": [("x.A", A), ("x.B", B)]}], (0.9, 0.999), 1e-4), {}
    for step in range(20):
        W.grad = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        B -= 0.01 * loft.change(state, W.grad @ A.T, A, 1e-14)
        adam.step()
    assert torch.allclose(B @ A, W, rtol=1e-7, atol=1e-10)


def test_moments_are_those_of_projected_gradients_written_for_the_new_partner() -> None:
    generator = torch.Generator().manual_seed(0)
    before, now = (torch.randn(3, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    G, H = (torch.randn(7, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    loft, state = LoftAdamW([{"params": [("x.A", before), ("x.B", G)]}], (0.9, 0.999), 1e-4), {}
    onto = [Y.T @ torch.linalg.inv(Y @ Y.T) @ Y for Y in (before, now)]
    loft.change(state, G @ before.T, before, 0.0)
    assert torch.allclose(state["mean"] @ before, 0.1 * G @ onto[0], rtol=1e-10)
    V = torch.einsum("pj,ipq,qj->ij", before, state["square"], before)
    assert torch.allclose(V, 0.001 * (G @ onto[0]).square(), rtol=1e-9)
    loft.change(state, H @ now.T, now, 0.0)
    assert torch.allclose(state["mean"] @ now, 0.09 * G @ onto[0] @ onto[1] + 0.1 * H @ onto[1], rtol=1e-10)
    both = 0.999 * 0.001 * (G @ onto[0] @ onto[1]).square() + 0.001 * (H @ onto[1]).square()
    V = torch.einsum("pj,ipq,qj->ij", now, state["square"], now)
    assert torch.allclose(V, both, rtol=1e-9)


def test_b_moves_first_and_then_in_turn() -> None:
    attached = pairs.attach("loft", filled=False)
    optimizer = pairs.optimizer_of(attached)
    for step in range(4):
        before = [(A.detach().clone(), B.detach().clone()) for A, B in pairs.pairs_of(attached)]
        pairs.gradients(attached, step)
        optimizer.step()
        for (A, B), (old_A, old_B) in zip(pairs.pairs_of(attached), before, strict=True):
            assert torch.equal(A, old_A) == (step % 2 == 0)
            assert torch.equal(B, old_B) == (step % 2 == 1)


def test_a_factor_is_refused() -> None:
    with pytest.raises(RecipeError, match="loft does not support a scaling factor, got 2"):
        pairs.attach("loft", scale=2.0)

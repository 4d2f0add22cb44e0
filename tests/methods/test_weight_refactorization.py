"""The preset: fedsvd with both factors trained, singular values in both, and the momentum set to zero."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch

from lrft.adapters.part import Run
from lrft.methods.fedsvd import FedSvd, balance, carry_over, factorise


def pair(**given: Any) -> Any:
    _, attached = tiny.layer("lora", 8, 6, rank=3)
    own = attached.modules["0"]
    tiny.disturb([own.B])
    return attached if given.get("handle") else own


def test_the_pair_is_written_by_square_roots_and_the_update_stays() -> None:
    own = pair()
    before = own.delta_weight().detach().clone()
    with torch.no_grad():
        factorise(own)
        balance(own)
    assert torch.allclose(own.delta_weight(), before, atol=1e-13)
    S = torch.linalg.svdvals(before / own.site.scale)[:3]
    assert torch.allclose(own.B.T @ own.B, torch.diag(S), atol=1e-12)
    assert torch.allclose(own.A @ own.A.T, torch.diag(S), atol=1e-12)


def test_a_direction_of_no_length_can_still_learn() -> None:
    own = pair()
    with torch.no_grad():
        own.B.zero_()
        factorise(own)
        balance(own)
    assert not own.B.any()
    assert torch.allclose(own.A @ own.A.T, torch.eye(3, dtype=torch.float64))


def test_every_so_many_steps_the_momentum_is_zero_and_nothing_else_changes() -> None:
    attached = pair(handle=True)
    own = attached.modules["0"]
    optimizer = torch.optim.AdamW(attached.trained().values())
    part = FedSvd(every=2, train_A=True, split="both", moments="momentum")
    assert part.lr_factors() == {}
    for step in range(2):
        optimizer.zero_grad()
        own.delta_weight().square().sum().backward()
        optimizer.step()
        before = {n: t.clone() for n, t in optimizer.state[own.A].items()}
        product = own.delta_weight().detach().clone()
        part.after_step(Run(step, 10, attached.model, attached.modules, optimizer, 0, lambda t: t))
        assert torch.allclose(own.delta_weight(), product, atol=1e-13)
        for p in (own.A, own.B):
            assert bool(optimizer.state[p]["exp_avg"].any()) == (step == 0)
        assert torch.equal(optimizer.state[own.A]["exp_avg_sq"], before["exp_avg_sq"])
        assert torch.equal(optimizer.state[own.A]["step"], before["step"])


def test_mapped_moments_are_those_of_gradients_by_the_balanced_pair() -> None:
    own = pair()
    G = torch.randn(8, 6, dtype=torch.float64)
    means = {"A": own.B.T @ G, "B": G @ own.A.T}
    state = {getattr(own, word): {"exp_avg": mean.detach().clone()} for word, mean in means.items()}
    with torch.no_grad():
        T = factorise(own)
        carry_over(state, own, T / balance(own))
    assert torch.allclose(state[own.A]["exp_avg"], own.B.T @ G, atol=1e-10)
    assert torch.allclose(state[own.B]["exp_avg"], G @ own.A.T, atol=1e-10)


@pytest.mark.parametrize("split", ["B", "both"])
def test_where_the_singular_values_go_is_an_option(split: Any) -> None:
    attached = pair(handle=True)
    own = attached.modules["0"]
    run = Run(0, 10, attached.model, attached.modules, torch.optim.AdamW(attached.trained().values()), 0, lambda t: t)
    FedSvd(every=1, split=split).after_step(run)
    assert torch.allclose(own.A @ own.A.T, torch.eye(3, dtype=torch.float64)) == (split == "B")

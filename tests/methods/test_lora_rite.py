"""LoRA-RITE: its steps do not depend on how the update is split, and what the first one is."""

from __future__ import annotations

from typing import Any

import pairs
import torch

FREE = {"lora-rite": {"clip": 0.0, "skip": 0.0}}


def trained(attached: Any, steps: int, **more: Any) -> Any:
    optimizer = pairs.optimizer_of(attached, **more)
    for step in range(steps):
        pairs.gradients(attached, step)
        optimizer.step()
    return optimizer


def test_the_path_of_the_update_does_not_depend_on_how_it_is_split() -> None:
    for words in ("lora-rite", FREE):
        one, other = pairs.attach(words), pairs.attach(words)
        S = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5)) + 2 * torch.eye(3)
        with torch.no_grad():
            for A, B in pairs.pairs_of(other):
                A.copy_(torch.linalg.solve(S, A))
                B.copy_(B @ S)
        start = pairs.products(one)
        trained(one, 8)
        trained(other, 8)
        for a, b, s in zip(pairs.products(one), pairs.products(other), start, strict=True):
            assert torch.allclose(a, b, rtol=1e-7, atol=1e-9)
            assert (a - s).abs().max() > 1e-3


def test_the_first_gradient_is_the_weights_on_an_orthonormal_partner_and_is_whitened() -> None:
    attached = pairs.attach(FREE)
    optimizer = pairs.optimizer_of(attached, eps=0.0)
    held = [(torch.linalg.qr(A.T).Q, torch.linalg.qr(B).Q) for A, B in pairs.pairs_of(attached)]
    made = pairs.gradients(attached, 0)
    optimizer.step()
    for (A, B), (of_A, of_B), G in zip(pairs.pairs_of(attached), held, made, strict=True):
        for p, U in ((A, G.T @ of_B), (B, G @ of_A)):
            state = optimizer.state[p]
            assert torch.allclose(state["square"], U.T @ U / len(U), rtol=1e-8, atol=1e-12)
            S = state["mean"]
            assert torch.allclose(S.T @ S / len(S), torch.eye(3, dtype=torch.float64), atol=1e-7)


def test_from_b_zero_b_alone_moves_first_and_everything_stays_finite() -> None:
    attached = pairs.attach("lora-rite", filled=False)
    start = attached.state_dict()
    trained(attached, 1)
    for name, value in attached.state_dict().items():
        assert torch.equal(value, start[name]) == name.endswith("A")
    trained(attached, 9)
    assert all(value.isfinite().all() for value in attached.state_dict().values())


def test_without_gradients_there_is_momentum_alone() -> None:
    attached = pairs.attach(FREE)
    optimizer = trained(attached, 3)
    before, means = pairs.pairs_of(attached)[0][1].detach().clone(), None
    A, B = pairs.pairs_of(attached)[0]
    means = optimizer.state[B]["mean"].clone()
    A.grad, B.grad = torch.zeros_like(A), torch.zeros_like(B)
    Q, R = torch.linalg.qr(A.detach().T)
    T = Q.T @ optimizer.state[B]["basis"]
    optimizer.step()
    b1 = 0.9 * (1 - 0.9**3) / (1 - 0.9**4)
    assert torch.allclose(B - before, -0.01 * b1 * means @ T.T @ torch.linalg.inv(R).T, rtol=1e-9)


def test_a_large_gradient_is_left_out_and_all_are_clipped_together() -> None:
    attached = pairs.attach("lora-rite")
    optimizer = pairs.optimizer_of(attached)
    pairs.gradients(attached, 0, size=50.0)
    start = attached.state_dict()
    optimizer.step()
    assert all(torch.equal(value, start[name]) for name, value in attached.state_dict().items())
    clipped = pairs.attach({"lora-rite": {"skip": 0.0}})
    optimizer = pairs.optimizer_of(clipped)
    pairs.gradients(clipped, 0, size=50.0)
    optimizer.step()
    traces = [
        len(p.T if p is A else p) * optimizer.state[p]["square"].trace()
        for A, B in pairs.pairs_of(clipped)
        for p in (A, B)
    ]
    assert torch.allclose(torch.stack(traces).sum(), torch.ones((), dtype=torch.float64), rtol=1e-9)


def test_balanced_factors_have_one_norm_and_the_same_product() -> None:
    plain, balanced = pairs.attach(FREE), pairs.attach({"lora-rite": {"clip": 0.0, "skip": 0.0, "balance": True}})
    trained(plain, 1)
    trained(balanced, 1)
    for A, B in pairs.pairs_of(balanced):
        assert torch.allclose(A.norm(), B.norm(), rtol=1e-5)
    for one, other in zip(pairs.products(plain), pairs.products(balanced), strict=True):
        assert torch.allclose(one, other, rtol=1e-9)

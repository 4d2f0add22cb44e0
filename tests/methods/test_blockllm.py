"""Which layers BlockLLM trains, and that it is AdamW of those."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lrft.methods.blockllm import BlockAdam, BlockLlm
from lrft.utils.seeds import seed_of

SIZES = ((6, 4), (4, 4), (8, 4), (4, 6))


def made(period: int = 2, **options: Any) -> tuple[list[nn.Parameter], BlockAdam]:
    tensors = [nn.Parameter(torch.zeros(size, dtype=torch.float64)) for size in SIZES]
    optimizer = BlockAdam(
        [{"params": [(f"{i}.D", p)], "rank": 2, "lr": 0.01, "period": period} for i, p in enumerate(tensors)],
        BlockLlm(**options).grid(),
        betas=(0.9, 0.999),
        eps=1e-12,
        seed_of=lambda name, number: seed_of(0, name, number),
        broadcast=lambda t: t,
    )
    return tensors, optimizer


def give(tensors: list[nn.Parameter], norms: tuple[float, ...], seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p, norm in zip(tensors, norms, strict=True):
        G = torch.randn(p.shape, dtype=torch.float64, generator=generator)
        p.grad = norm * G / G.norm()


def test_the_largest_gradients_are_chosen_until_the_budget_is_filled() -> None:
    for sparsity, expected in (
        (0.9, {"2.D"}),
        (0.67, {"2.D"}),
        (0.5, {"2.D", "0.D"}),
        (0.0, {"0.D", "1.D", "2.D", "3.D"}),
    ):
        tensors, optimizer = made(sparsity=sparsity)
        give(tensors, (3.0, 1.0, 5.0, 2.0))
        assert optimizer.active(0) == expected
        taken = sum(p.numel() for i, p in enumerate(tensors) if f"{i}.D" in expected)
        budget = (1 - sparsity) * sum(p.numel() for p in tensors)
        assert budget - 1e-9 <= taken < budget + max(p.numel() for p in tensors)


def test_who_was_chosen_often_is_chosen_less() -> None:
    tensors, optimizer = made(sparsity=0.9)
    chosen = []
    for step in range(8):
        give(tensors, (3.0, 1.0, 5.0, 2.0), seed=step)
        optimizer.step()
        chosen.append(next(i for i, p in enumerate(tensors) if len(optimizer.state[p]["columns"])))
    # 5 > 3; then 5/2 < 3; then 5/2 > 3/2, 2; then 5/3, 3/2 < 2
    assert chosen == [2, 2, 0, 0, 2, 2, 3, 3]
    assert [int(optimizer.state[p]["visits"]) for p in tensors] == [1, 0, 2, 1]


def test_the_others_stand_still_and_have_no_moments() -> None:
    tensors, optimizer = made(sparsity=0.9)
    start = [p.detach().clone() for p in tensors]
    for step in range(2):
        give(tensors, (3.0, 1.0, 5.0, 2.0), seed=step)
        optimizer.step()
    assert [torch.equal(p, old) for p, old in zip(tensors, start, strict=True)] == [True, True, False, True]
    assert [optimizer.state[p]["exp_avg"].numel() for p in tensors] == [0, 0, 32, 0]


def test_without_sparsity_it_is_adamw() -> None:
    tensors, optimizer = made(sparsity=0.0, period=100)
    others = [nn.Parameter(p.detach().clone()) for p in tensors]
    stock = torch.optim.AdamW(others, lr=0.01, eps=1e-30, weight_decay=0.0)
    for step in range(5):
        give(tensors, (3.0, 1.0, 5.0, 2.0), seed=step)
        give(others, (3.0, 1.0, 5.0, 2.0), seed=step)
        optimizer.step()
        stock.step()
    for ours, theirs in zip(tensors, others, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9)

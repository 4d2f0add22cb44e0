"""Flora: Adafactor with a projected momentum, against transformers' Adafactor and formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor

from lrft.adapters.part import Making
from lrft.methods.flora import Flora, ProjectedMomentum
from lrft.optim.named_state import load_state_tensors, state_tensors, with_state

LR = 0.01
EVERY_SHAPE = pytest.mark.parametrize("shape", [(12, 8), (8, 12)])


def make(
    p: nn.Parameter, *, momentum: float = 0.9, rank: int = 4, period: int = 3, decay: float = 0.0, **options: Any
) -> ProjectedMomentum:
    group = {"params": [("site.D", p)], "site": "site", "rank": rank, "lr": LR, "weight_decay": decay}
    made = Flora(**options).make_optimizer([{**group, "period": period}], Making((momentum, 0.0), 0.0, 7, lambda t: t))
    assert isinstance(made, ProjectedMomentum)
    return made


def start(shape: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64))


def run(optimizer: Any, p: nn.Parameter, steps: range) -> list[Tensor]:
    found = []
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        p.grad = (1 + step) * torch.randn(p.shape, generator=generator, dtype=p.dtype)
        optimizer.step()
        found.append(p.detach().clone())
    return found


@EVERY_SHAPE
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_without_momentum_it_is_adafactor(shape: tuple[int, int], clip: float) -> None:
    ours, theirs = start(shape), start(shape)
    stock = Adafactor(
        [theirs],
        lr=LR,
        scale_parameter=False,
        relative_step=False,
        warmup_init=False,
        clip_threshold=clip,
        weight_decay=0.1,
    )
    expected = run(stock, theirs, range(6))
    for mine, wanted in zip(run(make(ours, momentum=0.0, decay=0.1, clip=clip), ours, range(6)), expected, strict=True):
        assert torch.allclose(mine, wanted, rtol=1e-10, atol=1e-12)


@EVERY_SHAPE
def test_momentum_by_hand_through_a_change_of_projection(shape: tuple[int, int]) -> None:
    p = start(shape)
    optimizer = make(p, period=2, clip=1e9)
    found = run(optimizer, p, range(5))
    tall = shape[0] >= shape[1]
    W = start(shape).detach()
    W = W if tall else W.T
    n = min(shape)
    A = [optimizer.drawn("site.D", i, torch.zeros(1, n, dtype=torch.float64), 4) for i in range(4)]
    rows, columns, C, now = 0.0, 0.0, torch.zeros(max(shape), 4, dtype=torch.float64), 0
    for t in range(1, 6):
        generator = torch.Generator().manual_seed(t - 1)
        G = t * torch.randn(shape, generator=generator, dtype=torch.float64)
        G = G if tall else G.T
        b2 = 1 - t**-0.8
        rows = b2 * rows + (1 - b2) * (G**2 + 1e-30).mean(1)
        columns = b2 * columns + (1 - b2) * (G**2 + 1e-30).mean(0)
        U = G / (torch.outer(rows, columns) / rows.mean()).sqrt()
        W = W - LR * (0.1 * U + 0.9 * C @ A[now].T)
        if t % 2 == 0:
            C = (C @ A[now].T) @ A[now + 1]
            now += 1
        C = 0.9 * C + 0.1 * U @ A[now]
        assert torch.allclose(found[t - 1], W if tall else W.T, rtol=1e-10, atol=1e-12), t
    assert optimizer.state[p].keys() == {"step", "rows", "columns", "momentum"}


def test_down_and_up_again_is_the_same_on_average_and_one_draw_is_off_by_the_law() -> None:
    """E[A A'] = 1; the relative error of one draw is sqrt((n + 1) / r)."""
    optimizer = make(start((12, 8)))
    U = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors, mean, draws = [], torch.zeros_like(U), 4000
    for number in range(draws):
        A = optimizer.drawn("site.D", number, U, 4)
        again = U @ A @ A.T
        mean += again / draws
        errors.append(((again - U).norm() / U.norm()).square().item())
    law = (16 + 1) / 4
    assert sum(errors) / draws == pytest.approx(law, rel=0.05)
    assert (mean - U).norm() / U.norm() < 3 * math.sqrt(law / draws)


def test_a_momentum_carried_over_is_the_same_on_average() -> None:
    optimizer = make(start((12, 8)))
    U = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    A = optimizer.drawn("site.D", 0, U, 4)
    C, draws = U @ A, 6000
    carried = sum(C @ A.T @ new @ new.T for new in (optimizer.drawn("site.D", 1 + i, U, 4) for i in range(draws)))
    assert (carried / draws - C @ A.T).norm() / (C @ A.T).norm() < 3 * math.sqrt(9 / 4 / draws)


def test_projections_are_those_of_seed_name_and_number() -> None:
    optimizer, like = make(start((12, 8))), torch.zeros(12, 8)
    torch.manual_seed(1)
    one = optimizer.drawn("a", 0, like, 4)
    torch.manual_seed(2)
    assert torch.equal(one, optimizer.drawn("a", 0, like, 4))
    for other in (optimizer.drawn("a", 1, like, 4), optimizer.drawn("b", 0, like, 4)):
        assert not torch.equal(one, other)


def test_a_steps_root_mean_square_is_clipped() -> None:
    p = start((12, 8))
    before = p.detach().clone()
    run(make(p, momentum=0.0, clip=0.5), p, range(1))
    assert (p.detach() - before).square().mean().sqrt().item() == pytest.approx(0.5 * LR, rel=1e-9)


@pytest.mark.parametrize("cut", [1, 2, 3, 4])
def test_saved_and_loaded_in_the_middle_it_goes_on_in_the_same_bits(cut: int) -> None:
    p = start((12, 8))
    straight = run(make(p), p, range(7))
    p = start((12, 8))
    first = make(p)
    run(first, p, range(cut))
    saved = {name: t.clone() for name, t in state_tensors(first).items()}
    q = nn.Parameter(p.detach().clone())
    second = make(q)
    load_state_tensors(second, saved, with_state(state_tensors(first)))
    assert torch.equal(run(second, q, range(cut, 7))[-1], straight[-1])


def test_the_state_is_small() -> None:
    p = nn.Parameter(torch.zeros(64, 48))
    optimizer = make(p, rank=4)
    run(optimizer, p, range(1))
    assert sum(t.numel() for t in optimizer.state[p].values()) == 4 * 64 + 64 + 48 + 1


@pytest.mark.parametrize(("shape", "rank"), [((33, 8), 4), ((8, 33), 4), ((12, 8), 9), ((8, 12), 9)])
def test_momentum_of_a_long_matrix_or_beyond_the_short_side_is_not_projected(shape: tuple[int, int], rank: int) -> None:
    """As released: it is then the running mean of Adafactor's directions, which is the step."""
    p, plain = start(shape), start(shape)
    optimizer, stock = make(p, rank=rank, clip=1e9), make(plain, momentum=0.0, clip=1e9)
    found, steps = run(optimizer, p, range(5)), run(stock, plain, range(5))
    W, M, before = start(shape).detach(), torch.zeros(shape, dtype=torch.float64), start(shape).detach()
    for mine, after in zip(found, steps, strict=True):
        M = 0.9 * M + 0.1 * (before - after) / LR
        W = W - LR * M
        before = after
        assert torch.allclose(mine, W, rtol=1e-10, atol=1e-12)
    held = sum(t.numel() for t in optimizer.state[p].values()) - 1
    assert held == Flora().optimizer_numbers(*shape, rank) == shape[0] + shape[1] + shape[0] * shape[1]


@EVERY_SHAPE
def test_at_four_times_the_short_side_and_at_its_rank_it_still_is(shape: tuple[int, int]) -> None:
    long = (32, 8) if shape[0] > shape[1] else (8, 32)
    for sides, rank in ((long, 4), (shape, 8)):
        p = start(sides)
        optimizer = make(p, rank=rank)
        run(optimizer, p, range(1))
        assert optimizer.state[p]["momentum"].shape == (max(sides), rank)


@EVERY_SHAPE
def test_projected_sums_by_hand(shape: tuple[int, int]) -> None:
    """The step is that of the plain mode along (G1 + G2 + G3) A A', for an A that each step draws anew."""
    p, plain = start(shape), start(shape)
    optimizer, stock = make(p, accumulation="projected"), make(plain)
    n, seen = min(shape), []
    for step in range(3):
        passes = [
            torch.randn(shape, generator=torch.Generator().manual_seed(9 * step + i), dtype=p.dtype) for i in range(3)
        ]
        A = optimizer.drawn("site.D/sum", step, torch.zeros(1, n, dtype=torch.float64), 4)
        seen.append(A)
        whole = sum(passes)
        plain.grad = whole @ A @ A.T if shape[1] == n else A @ A.T @ whole
        for G in passes:
            assert optimizer.take(p, G)
        assert optimizer.norms()[p].item() == pytest.approx(plain.grad.norm().item(), rel=1e-10)
        assert [t.numel() for t in optimizer.sums.values()] == [max(shape) * 4] == [Flora().gradient_numbers(*shape, 4)]
        optimizer.step()
        stock.step()
        assert torch.allclose(p, plain, rtol=1e-10, atol=1e-12)
    assert not optimizer.sums
    assert not torch.equal(seen[0], seen[1])


def test_what_is_not_projected_stays_a_gradient() -> None:
    p = start((33, 8))
    optimizer = make(p, accumulation="projected")
    p.grad = torch.ones_like(p)
    assert not optimizer.take(p, p.grad)
    assert optimizer.norms()[p].item() == pytest.approx(math.sqrt(33 * 8))

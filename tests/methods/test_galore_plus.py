"""GaLore+ without its changes is GaLore; and what each of them does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from lrft.adapters.projected_adam import Grid, ProjectedAdam
from lrft.methods.galore_plus import CrossHeadAdam, GalorePlus
from lrft.utils.seeds import seed_of

GIVEN = {
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "seed_of": lambda name, number: seed_of(0, name, number),
    "broadcast": lambda t: t,
}


def wide(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def made(cls: Any, first: Any, name: str = "q_proj.D", shape: tuple[int, int] = (12, 8)) -> tuple[nn.Parameter, Any]:
    p = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    groups = [{"params": [(f"0.{name}", p)], "rank": 3, "lr": 0.01, "period": 2}]
    return p, cls(first, groups, **GIVEN) if cls is CrossHeadAdam else cls(groups, first, **GIVEN)


def test_without_heads_and_entries_it_is_galore() -> None:
    p, plus = made(CrossHeadAdam, GalorePlus(head_size=0, entries=0.0, factor=0.5))
    q, galore = made(ProjectedAdam, Grid(projection="randomized", scale=0.5))
    for step in range(5):
        p.grad = q.grad = wide(12, 8, seed=step)
        plus.step()
        galore.step()
        assert torch.equal(p, q)


def test_the_directions_are_those_of_one_head_at_a_time() -> None:
    p, plus = made(CrossHeadAdam, GalorePlus(head_size=4))
    for step, head in ((0, 0), (2, 1), (4, 2), (6, 0)):
        G = wide(12, 8, seed=step)
        plus.choose("0.q_proj.D", step // 2, plus.state[p], G, 3)
        P = plus.state[p]["P"]
        best = torch.linalg.svd(G[4 * head : 4 * head + 4]).Vh[:3]
        assert torch.allclose(P.T @ P, best.T @ best, atol=1e-9)
        assert torch.allclose(P @ P.T, torch.eye(3, dtype=torch.float64), atol=1e-12)


def test_other_layers_and_turned_ones_look_at_everything() -> None:
    for name, shape in (("o_proj.D", (12, 8)), ("q_proj.D", (8, 12))):
        p, plus = made(CrossHeadAdam, GalorePlus(head_size=4), name, shape)
        G = wide(12, 8)
        plus.choose(f"0.{name}", 1, plus.state[p], G, 3)
        best = torch.linalg.svd(G).Vh[:3]
        P = plus.state[p]["P"]
        assert torch.allclose(P.T @ P, best.T @ best, atol=1e-9)


def test_entries_are_chosen_once_and_follow_adam_of_the_rest() -> None:
    p, plus = made(CrossHeadAdam, GalorePlus(head_size=0, entries=0.1, warmup=3, factor=1.0))
    q, galore = made(ProjectedAdam, Grid(projection="randomized"))
    seen, chosen, mean, square = torch.zeros(96, dtype=torch.float64), None, 0.0, 0.0
    for step in range(6):
        before = p.detach().clone()
        p.grad, q.grad = wide(12, 8, seed=step), wide(12, 8, seed=step)
        other = q.detach().clone()
        plus.step()
        galore.step()
        P = galore.state[q]["P"]
        rest = (p.grad - p.grad @ P.T @ P).flatten()
        more = ((p.detach() - before) - (q.detach() - other)).flatten() / -0.01
        if step < 3:
            seen += rest.abs()
            assert not more.any()
            continue
        if chosen is None:
            chosen = seen.topk(10).indices.sort().values
        assert torch.equal(plus.state[p]["entries"], chosen)
        t = step - 2
        mean, square = 0.9 * mean + 0.1 * rest[chosen], 0.999 * square + 0.001 * rest[chosen] ** 2
        expected = torch.zeros_like(more)
        expected[chosen] = math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * mean / (square.sqrt() + 1e-8)
        assert torch.allclose(more, expected, atol=1e-8)


def test_all_entries_see_the_whole_rest() -> None:
    p, plus = made(CrossHeadAdam, GalorePlus(head_size=0, entries=1.0, warmup=1))
    for step in range(2):
        p.grad = wide(12, 8, seed=step)
        plus.step()
    assert torch.equal(plus.state[p]["entries"], torch.arange(96))

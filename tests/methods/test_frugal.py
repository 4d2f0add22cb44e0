"""FRUGAL: AdamW on a share of the weights, the sign of the gradient on the others; both ends are stock optimisers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrft.adapters.part import Making
from lrft.adapters.projected_adam import down, up
from lrft.methods.frugal import Frugal

LR = 0.01
SHAPES = [(12, 8), (8, 12), (10, 10), (6, 20)]
PROJECTIONS = ("block", "coordinate", "svd", "randomized", "random", "dct")


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def make(part: Frugal, *, period: int = 3, eps: float = 1e-30) -> tuple[list[nn.Parameter], Any]:
    parameters = [nn.Parameter(t) for t in tensors(0)]
    groups = [
        {"params": [(f"{i}.D", p)], "site": str(i), "rank": 1, "lr": LR, "weight_decay": 0.1, "period": period}
        for i, p in enumerate(parameters)
    ]
    return parameters, part.make_optimizer(groups, Making((0.9, 0.999), eps, 0, lambda t: t))


def train(parameters: list[nn.Parameter], optimizer: Any, steps: int) -> None:
    for step in range(steps):
        for p, g in zip(parameters, tensors(step + 1), strict=True):
            p.grad = g
        optimizer.step()


@pytest.mark.parametrize("projection", ["block", "coordinate"])
def test_at_density_one_it_is_adamw(projection: Any) -> None:
    """While nothing is chosen anew, which resets the moments: stock AdamW does not do that. An epsilon that is seen."""
    parameters, optimizer = make(Frugal(projection=projection, density=1.0), period=9, eps=0.1)
    expected = [nn.Parameter(t) for t in tensors(0)]
    train(parameters, optimizer, 6)
    train(expected, torch.optim.AdamW(expected, lr=LR, betas=(0.9, 0.999), eps=0.1, weight_decay=0.1), 6)
    for mine, theirs in zip(parameters, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_at_density_zero_it_is_the_sign_alone(projection: Any) -> None:
    parameters, optimizer = make(Frugal(projection=projection, density=0.0, inactive_scale=1.0))
    expected = tensors(0)
    train(parameters, optimizer, 5)
    for step in range(5):
        expected = [t * (1 - LR * 0.1) - LR * g.sign() for t, g in zip(expected, tensors(step + 1), strict=True)]
    for mine, theirs in zip(parameters, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-14)
    assert sum(t.numel() for p in parameters for t in optimizer.state[p].values()) == 2 * len(parameters)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_every_step_after_a_choice_is_a_first_step_of_adam(projection: Any) -> None:
    """Moments and their count begin anew: a column that was not chosen before does not move several times too far."""
    parameters, optimizer = make(Frugal(projection=projection, density=0.5, inactive="none"), period=2)
    for step in range(7):
        before = [p.detach() * (1 - LR * 0.1) for p in parameters]
        for p, g in zip(parameters, tensors(step + 1), strict=True):
            p.grad = g
        optimizer.step()
        if step % 2 == 0 and projection in ("block", "coordinate"):
            for p, old in zip(parameters, before, strict=True):
                moved = (p.detach() - old).abs()
                assert torch.all((moved < 1e-15) | ((moved - LR).abs() < 1e-9))


@pytest.mark.parametrize("projection", ["block", "coordinate"])
def test_what_is_not_chosen_moves_by_its_own_rate_exactly(projection: Any) -> None:
    parameters, optimizer = make(Frugal(projection=projection, density=0.5, inactive_scale=0.1))
    train(parameters, optimizer, 1)
    moved = [(p.detach() - t * (1 - LR * 0.1)).abs() for p, t in zip(parameters, tensors(0), strict=True)]
    sizes = torch.cat([m.flatten() for m in moved])
    slow = (sizes - 0.1 * LR).abs() < 1e-12
    fast = (sizes - LR).abs() < 1e-9
    assert torch.all(slow | fast)
    if projection == "block":
        assert [bool((m - LR).abs().max() < 1e-9) for m in moved].count(True) == 2
    else:
        assert 0.4 < fast.double().mean() < 0.6


@pytest.mark.parametrize("projection", ["block", "coordinate", "svd", "random", "dct"])
def test_chosen_and_other_part_make_up_the_gradient(projection: Any) -> None:
    """With plain gradients outside, what is missing of the gradient in the step is what AdamW has taken."""
    parameters, optimizer = make(Frugal(projection=projection, density=0.5, inactive="sgd", inactive_scale=1.0))
    train(parameters, optimizer, 1)
    for p, t, g in zip(parameters, tensors(0), tensors(1), strict=True):
        outside = (t * (1 - LR * 0.1) - p.detach()) / LR
        state = optimizer.state[p]
        turned = projection != "coordinate" and g.shape[0] < g.shape[1]
        tall = g.T if turned else g
        outside = outside.T if turned else outside
        inside = up(state, down(state, tall), tall)
        assert torch.allclose(down(state, tall - inside), torch.zeros(()).double(), atol=1e-12)
        adam = up(state, down(state, tall).sign(), tall)
        assert torch.allclose(outside, adam + tall - inside, atol=1e-9)


@pytest.mark.parametrize(("density", "share"), [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("projection", ["coordinate", "block"])
def test_its_moments_are_that_share_of_adams(projection: Any, density: float, share: float) -> None:
    parameters, optimizer = make(Frugal(projection=projection, density=density))
    train(parameters, optimizer, 1)
    held = sum(optimizer.state[p]["exp_avg"].numel() for p in parameters)
    assert held / sum(p.numel() for p in parameters) == pytest.approx(share, abs=0.08)


def test_the_choice_is_that_of_the_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        _, optimizer = make(Frugal(projection="block", density=0.5))
        optimizer.seed_of = lambda word, number, seed=seed: hash((seed, word == "block", number)) % 2**31
        found.append([sorted(optimizer.active(number)) for number in range(6)])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_columns_are_those_of_the_inputs_on_wide_weights_too() -> None:
    """As released: a quarter of the columns of W (d, k), the whole part, whichever side is the longer."""
    parameters, optimizer = make(Frugal(inactive="none"))
    train(parameters, optimizer, 1)
    for p, t in zip(parameters, tensors(0), strict=True):
        moved = ((p.detach() - t * (1 - LR * 0.1)).abs() > 1e-12).all(dim=0)
        assert moved.sum() == p.shape[1] // 4
        assert optimizer.state[p]["columns"].tolist() == moved.nonzero().flatten().tolist()
        assert optimizer.state[p]["exp_avg"].shape == (p.shape[0], p.shape[1] // 4)


@pytest.mark.parametrize("projection", PROJECTIONS[1:])
def test_its_number_of_directions_is_the_released_one(projection: Any) -> None:
    for density in (0.0, 0.1, 0.29, 0.3, 0.45, 1.0):
        for shape in SHAPES:
            expected = int(shape[1] * density + 1e-9) if projection == "coordinate" else round(min(shape) * density)
            assert Frugal(projection=projection, density=density).rank(99, torch.Size(shape)) == expected

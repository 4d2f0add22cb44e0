"""Adam on a projected gradient: each point of the grid against formulas written out, and against stock AdamW."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrft import optim
from lrft.core.compose import seed_of
from lrft.core.projected import Grid, ProjectedAdam

BETAS, EPS, LR = (0.9, 0.999), 1e-8, 0.01
PROJECTIONS = ("svd", "randomized", "random", "dct", "coordinate")


def make(p: nn.Parameter, rank: int, *, decay: float = 0.0, **grid: Any) -> ProjectedAdam:
    group = {"params": [("site.D", p)], "site": "site", "rank": rank, "lr": LR, "weight_decay": decay}
    return ProjectedAdam(
        [group],
        Grid(**grid),
        betas=BETAS,
        eps=EPS,
        seed_of=lambda name, number: seed_of(0, name, number),
        broadcast=lambda t: t,
    )


def gradients(shape: tuple[int, int], n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(n)]


def run(optimizer: Any, p: nn.Parameter, given: list[Tensor]) -> list[Tensor]:
    """The parameter after each step."""
    found = []
    for g in given:
        p.grad = g.clone()
        optimizer.step()
        found.append(p.detach().clone())
    return found


def zeros(shape: tuple[int, int]) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
@pytest.mark.parametrize("residual", ["none", "fira", "sign", "sgd"])
def test_the_whole_space_in_coordinates_is_adamw(shape: tuple[int, int], residual: str) -> None:
    """Nothing is left over, so what becomes of the rest does not matter. Only epsilon's place differs."""
    given, ours, theirs = gradients(shape, 6), zeros(shape), zeros(shape)
    stock = torch.optim.AdamW([theirs], lr=LR, betas=BETAS, eps=1e-30, weight_decay=0.1)
    own = make(ours, 8, decay=0.1, projection="coordinate", period=2, residual=residual)
    own.eps = 1e-30
    expected = run(stock, theirs, given)
    for found, wanted in zip(run(own, ours, given), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_a_projection_has_orthonormal_rows_and_each_step_its_rank(projection: str, shape: tuple[int, int]) -> None:
    p = zeros(shape)
    optimizer = make(p, 3, projection=projection, period=2)
    given = gradients(shape, 5)
    before = torch.zeros(shape, dtype=torch.float64)
    for g, after in zip(given, run(optimizer, p, given), strict=True):
        assert torch.linalg.matrix_rank(after - before) <= 3
        before = after
        assert g.shape == after.shape
    assert torch.linalg.matrix_rank(before) > 3, "the whole update's rank grows with each new projection"
    if "P" in optimizer.state[p]:
        P = optimizer.state[p]["P"]
        assert torch.allclose(P @ P.T, torch.eye(3, dtype=torch.float64), atol=1e-10)


@pytest.mark.parametrize("projection", ["svd", "randomized"])
def test_the_first_directions_are_the_leading_ones_of_the_gradient(projection: str) -> None:
    """With a sign for a step (Adam's first), what is projected back lies in the best rows of G."""
    p = zeros((12, 8))
    optimizer = make(p, 3, projection=projection)
    (g,) = gradients((12, 8), 1)
    run(optimizer, p, [g])
    V = torch.linalg.svd(g).Vh[:3]
    P = optimizer.state[p]["P"]
    assert torch.allclose(P.T @ P, V.T @ V, atol=1e-9)


def test_cosines_are_those_with_most_of_the_gradient() -> None:
    n = 8
    at = torch.arange(n, dtype=torch.float64)
    basis = torch.stack([torch.cos(math.pi * j * (2 * at + 1) / (2 * n)) for j in range(n)])
    basis /= basis.norm(dim=1, keepdim=True)
    p = zeros((12, n))
    optimizer = make(p, 2, projection="dct")
    g = torch.outer(torch.ones(12, dtype=torch.float64), 3 * basis[5] + 2 * basis[0] + 0.1 * basis[3])
    run(optimizer, p, [g])
    assert optimizer.state[p]["cosines"].tolist() == [0, 5]


def test_adam_by_hand_through_two_projections_with_moments_kept_and_reset() -> None:
    """Formulas of the page, with numpy-like steps: R = G P', Adam on R, back."""
    for moments in ("keep", "reset"):
        p, given = zeros((12, 8)), gradients((12, 8), 4)
        found = run(make(p, 3, projection="svd", period=2, scale=0.25, moments=moments), p, given)
        w, M, V, t = torch.zeros(12, 8, dtype=torch.float64), 0.0, 0.0, 0
        for number, g in enumerate(given):
            if number % 2 == 0:
                P = torch.linalg.svd(g).Vh[:3]
                if moments == "reset":
                    M, V, t = 0.0, 0.0, 0
            t += 1
            R = g @ P.T
            M, V = 0.9 * M + 0.1 * R, 0.999 * V + 0.001 * R**2
            bias = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - LR * 0.25 * bias * (M / (V.sqrt() + EPS)) @ P
            if number < 2 or moments == "reset":  # signs of new vectors are arbitrary; kept moments see them
                assert torch.allclose(found[number], w, atol=1e-10), (moments, number)


def test_fira_by_hand() -> None:
    """The residual is orthogonal, scaled row by row as Adam scales R, and grows by at most 1 % a step."""
    p, given = zeros((12, 8)), gradients((12, 8), 3)
    given[1] *= 10
    found = run(make(p, 3, projection="svd", period=10, residual="fira"), p, given)
    w, M, V, norm = torch.zeros(12, 8, dtype=torch.float64), 0.0, 0.0, None
    P = torch.linalg.svd(given[0]).Vh[:3]
    for t, g in enumerate(given, start=1):
        R = g @ P.T
        M, V = 0.9 * M + 0.1 * R, 0.999 * V + 0.001 * R**2
        psi = M / (V.sqrt() + EPS)
        E = g - R @ P
        assert (E @ P.T).abs().max() < 1e-12
        S = E * (psi.norm(dim=1) / (R.norm(dim=1) + 1e-8))[:, None]
        if norm is not None and S.norm() > 1.01 * norm:
            S = S * 1.01 * norm / S.norm()
        norm = S.norm()
        w = w - LR * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * (psi @ P + S)
        assert torch.allclose(found[t - 1], w, atol=1e-10), t


def test_outside_the_projection_signs_move_by_the_learning_rate() -> None:
    p, (g,) = zeros((12, 8)), gradients((12, 8), 1)
    optimizer = make(p, 3, projection="coordinate", residual="sign", residual_scale=0.5)
    run(optimizer, p, [g])
    outside = [i for i in range(8) if i not in optimizer.state[p]["columns"].tolist()]
    assert torch.allclose(p.detach()[:, outside], -0.5 * LR * g[:, outside].sign())


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_saved_and_loaded_in_the_middle_it_goes_on_in_the_same_bits(projection: str, cut: int) -> None:
    given = gradients((12, 8), 7)
    grid: dict[str, Any] = {"projection": projection, "period": 3, "residual": "fira", "moments": "reset"}
    p = zeros((12, 8))
    straight = run(make(p, 3, **grid), p, given)
    p = zeros((12, 8))
    first = make(p, 3, **grid)
    run(first, p, given[:cut])
    saved, names = optim.state_tensors(first), optim.with_state(first)
    assert all(isinstance(t, Tensor) for t in saved.values())
    q = nn.Parameter(p.detach().clone())
    second = make(q, 3, **grid)
    optim.load_state_tensors(second, {name: t.clone() for name, t in saved.items()}, names)
    assert torch.equal(run(second, q, given[cut:])[-1], straight[-1])


def test_the_state_is_small() -> None:
    p = zeros((64, 48))
    optimizer = make(p, 4, projection="svd")
    run(optimizer, p, gradients((64, 48), 1))
    assert sum(t.numel() for t in optimizer.state[p].values()) == 2 * 4 * 64 + 4 * 48 + 2

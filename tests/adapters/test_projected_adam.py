"""Adam on a projected gradient: each point of the grid against formulas written out, and against stock AdamW."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lrft.adapters.projected_adam import Grid, ProjectedAdam, cosines
from lrft.optim.named_state import load_state_tensors, state_tensors, with_state
from lrft.utils.seeds import seed_of

BETAS, EPS, LR = (0.9, 0.999), 1e-8, 0.01
PROJECTIONS = ("svd", "randomized", "random", "dct", "coordinate")


def make(*tensors: Any, decay: float = 0.0, period: int = 200, **grid: Any) -> ProjectedAdam:
    """tensors: parameters, then the rank."""
    *parameters, rank = tensors
    given = {"rank": rank, "lr": LR, "weight_decay": decay, "period": period}
    return ProjectedAdam(
        [{"params": [(f"{i}.D", p)], **given} for i, p in enumerate(parameters)],
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


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("of_inputs", [False, True])
def test_a_vector_is_trained_by_adamw(projection: Any, of_inputs: bool) -> None:
    """The bias of a head: a matrix of one column, whose one direction is all of it."""
    given = [g[:, 0] for g in gradients((6, 1), 4)]
    ours, theirs = (nn.Parameter(torch.zeros(6, dtype=torch.float64)) for _ in range(2))
    stock = torch.optim.AdamW([theirs], lr=LR, betas=BETAS, eps=1e-30)
    own = make(ours, 3, projection=projection, period=9, of_inputs=of_inputs)
    for group in own.param_groups:
        group["weight_decay"] = stock.param_groups[0]["weight_decay"] = 0.1
    own.eps = 1e-30
    for a, b in zip(run(own, ours, given), run(stock, theirs, given), strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


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
    largest = P.gather(1, P.abs().argmax(1, keepdim=True))
    assert (largest > 0).all(), "of the two signs, the same in every process and after every change"


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
                P = P * P.sum(dim=1, keepdim=True).sign()
                if moments == "reset":
                    M, V, t = 0.0, 0.0, 0
            t += 1
            R = g @ P.T
            M, V = 0.9 * M + 0.1 * R, 0.999 * V + 0.001 * R**2
            bias = math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
            w = w - LR * 0.25 * bias * (M / (V.sqrt() + EPS)) @ P
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
    saved = state_tensors(first)
    assert all(isinstance(t, Tensor) for t in saved.values())
    q = nn.Parameter(p.detach().clone())
    second = make(q, 3, **grid)
    load_state_tensors(second, {name: t.clone() for name, t in saved.items()}, with_state(saved))
    assert torch.equal(run(second, q, given[cut:])[-1], straight[-1])


def test_the_state_is_small() -> None:
    p = zeros((64, 48))
    optimizer = make(p, 4, projection="svd")
    run(optimizer, p, gradients((64, 48), 1))
    assert sum(t.numel() for t in optimizer.state[p].values()) == 2 * 4 * 64 + 4 * 48 + 2


@pytest.mark.parametrize("shape", [(12, 8), (8, 12)])
def test_the_whole_space_in_cosines_is_adam_in_turned_coordinates(shape: tuple[int, int]) -> None:
    """G C' for the orthonormal cosine basis C is what stock Adam then sees, and its step is turned back."""
    n = min(shape)
    at = torch.arange(n, dtype=torch.float64)
    C = torch.stack([torch.cos(math.pi * j * (2 * at + 1) / (2 * n)) for j in range(n)])
    C /= C.norm(dim=1, keepdim=True)
    given, ours = gradients(shape, 5), zeros(shape)
    upright = [g if shape[0] >= shape[1] else g.T for g in given]
    turned = zeros((max(shape), n))
    stock = torch.optim.Adam([turned], lr=LR, betas=BETAS, eps=1e-30)
    own = make(ours, n, projection="dct", period=1)
    own.eps = 1e-30
    expected = run(stock, turned, [g @ C.T for g in upright])
    for found, wanted in zip(run(own, ours, given), expected, strict=True):
        back = wanted @ C
        assert torch.allclose(found, back if shape[0] >= shape[1] else back.T, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_other_cosines_leave_less_of_the_gradient(rank: int) -> None:
    p, (g,) = zeros((9, 6)), gradients((9, 6), 1)
    optimizer = make(p, rank, projection="dct", residual="sgd")
    run(optimizer, p, [g])
    everything = cosines(torch.arange(6), g)
    assert torch.allclose(everything @ everything.T, torch.eye(6, dtype=torch.float64), atol=1e-12)
    left = {
        chosen: (g - g @ everything[list(chosen)].T @ everything[list(chosen)]).norm().item()
        for chosen in itertools.combinations(range(6), rank)
    }
    assert min(left, key=left.__getitem__) == tuple(optimizer.state[p]["cosines"].tolist())


def test_the_first_step_is_the_projected_sign_scaled() -> None:
    """Adam's first direction is the sign of what it sees."""
    p, (g,) = zeros((12, 8)), gradients((12, 8), 1)
    optimizer = make(p, 3, projection="svd", scale=0.25)
    optimizer.eps = 1e-30
    run(optimizer, p, [g])
    P = torch.linalg.svd(g).Vh[:3]
    assert torch.allclose(p.detach(), -LR * 0.25 * (g @ P.T).sign() @ P, atol=1e-12)


@pytest.mark.parametrize("projection", ["dct", "coordinate"])
def test_rotated_moments_of_columns_that_stay_are_kept_in_their_bits(projection: str) -> None:
    p, given = zeros((12, 8)), gradients((12, 8), 2)
    optimizer = make(p, 5, projection=projection, period=1, moments="rotate")
    word = "cosines" if projection == "dct" else "columns"
    run(optimizer, p, given[:1])
    before = {name: t.clone() for name, t in optimizer.state[p].items()}
    optimizer.choose("0.D", 1, optimizer.state[p], given[1], 5)
    now = optimizer.state[p]
    stayed = set(before[word].tolist()) & set(now[word].tolist())
    assert 0 < len(stayed) < 5
    for j, column in enumerate(now[word].tolist()):
        for moment in ("exp_avg", "exp_avg_sq"):
            if column in stayed:
                assert torch.equal(now[moment][:, j], before[moment][:, before[word].tolist().index(column)])
            else:
                assert not now[moment][:, j].any()


def test_rotated_moments_are_the_same_momentum_in_a_new_basis() -> None:
    """Where both projections span the same space, the momentum in the full space stays and the variances stay >= 0."""
    p = zeros((12, 8))
    g = torch.zeros(12, 8, dtype=torch.float64)
    g[:, :3] = gradients((12, 3), 1)[0]
    optimizer = make(p, 3, projection="svd", period=1, moments="rotate")
    run(optimizer, p, [g])
    state = optimizer.state[p]
    full = state["exp_avg"] @ state["P"]
    other = torch.zeros_like(g)
    other[:, :3] = gradients((12, 3), 2)[1]
    optimizer.choose("0.D", 1, state, other, 3)
    assert not torch.allclose(state["P"], torch.linalg.svd(g).Vh[:3])
    assert torch.allclose(state["exp_avg"] @ state["P"], full, atol=1e-12)
    assert (state["exp_avg_sq"] >= 0).all()


def test_the_rest_may_grow_after_a_step_without_any() -> None:
    """A first gradient that lies wholly in the projection must not hold later ones at zero."""
    p, (g,) = zeros((12, 8)), gradients((12, 8), 1)
    flat = torch.zeros_like(g)
    optimizer = make(p, 3, projection="svd", residual="fira")
    run(optimizer, p, [flat])
    assert optimizer.state[p]["residual_norm"] == 0
    run(optimizer, p, [g])
    first = optimizer.state[p]["residual_norm"].item()
    assert first > 1e-3
    run(optimizer, p, [10 * g])
    assert optimizer.state[p]["residual_norm"].item() == pytest.approx(1.01 * first, rel=1e-12)


def test_without_any_rest_fira_is_its_projection() -> None:
    given, one, two = gradients((12, 8), 4), zeros((12, 8)), zeros((12, 8))
    run(make(one, 8, projection="svd", residual="fira"), one, given)
    run(make(two, 8, projection="svd"), two, given)
    assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (300, 250)])
def test_without_a_rank_everything_moves_by_its_sign(projection: str, shape: tuple[int, int]) -> None:
    p, (g,) = zeros(shape), gradients(shape, 1)
    run(make(p, 0, projection=projection, residual="sign"), p, [g])
    assert torch.allclose(p.detach(), -LR * g.sign(), atol=1e-15)


def test_blocks_are_whole_tensors_that_change_and_the_others_keep_no_moments() -> None:
    parameters = [zeros((4, 3 + i)) for i in range(8)]
    optimizer = make(*parameters, 0, projection="block", density=0.25, period=2, moments="reset", residual="sign")
    chosen = []
    for step in range(12):
        for i, p in enumerate(parameters):
            p.grad = gradients((4, 3 + i), step + 1)[step]
        optimizer.step()
        active = {i for i, p in enumerate(parameters) if optimizer.state[p]["exp_avg"].numel()}
        assert len(active) == 2
        assert {f"{i}.D" for i in active} == optimizer.active(step // 2)
        for i in active:
            assert optimizer.state[parameters[i]]["exp_avg"].numel() == 4 * (3 + i)
            assert int(optimizer.state[parameters[i]]["count"]) == step % 2 + 1
        chosen.append(frozenset(active))
    assert chosen[::2] == chosen[1::2], "within a period"
    assert len(set(chosen)) > 2
    assert [len(optimizer.active(0))] == [2]


def test_blocks_go_on_in_the_same_bits() -> None:
    shapes: list[tuple[int, int]] = [(6, 4), (4, 6), (5, 5), (7, 3)]
    grid: dict[str, Any] = {"projection": "block", "density": 0.5, "period": 3, "moments": "reset", "residual": "sign"}

    def go(optimizer: ProjectedAdam, parameters: list[nn.Parameter], steps: range) -> None:
        for step in steps:
            for p in parameters:
                p.grad = gradients((p.shape[0], p.shape[1]), step + 1)[step]
            optimizer.step()

    straight = [zeros(shape) for shape in shapes]
    go(make(*straight, 0, **grid), straight, range(8))
    for cut in (1, 3, 5):
        parameters = [zeros(shape) for shape in shapes]
        first = make(*parameters, 0, **grid)
        go(first, parameters, range(cut))
        saved = {name: t.clone() for name, t in state_tensors(first).items()}
        second = make(*parameters, 0, **grid)
        load_state_tensors(second, saved, with_state(state_tensors(first)))
        go(second, parameters, range(cut, 8))
        assert all(torch.equal(a, b) for a, b in zip(parameters, straight, strict=True))

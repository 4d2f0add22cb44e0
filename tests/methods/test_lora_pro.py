"""LoRA-Pro's gradients against projections, a brute-force least-squares solve, and their optimality conditions."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.optim.adamw import AdamW
from lrft.planning.imagined import optimizer_bytes


def model_of(*shapes: tuple[int, int], ranks: tuple[int, ...] = (3,), scale: float = 2.0, seed: int = 0) -> Any:
    """A handle on float64 layers of (d, k), whose A and B are random and not of one size."""
    model = nn.Sequential(*(nn.Linear(k, d) for d, k in shapes)).double()
    overrides = {str(i): {"rank": rank, "scale": scale} for i, rank in enumerate(ranks)}
    attached = lrft.attach(model, {"method": "lora-pro", "rank": 3, "scale": scale, "overrides": overrides})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in attached.trained().items():
            size = 0.3 if name.endswith("B") else 1.0
            p.copy_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return attached


def full_gradient(pair: Any, seed: int = 7) -> Tensor:
    """A random G by the weight, and with it the gradients that A and B have."""
    G = torch.randn(pair.site.d, pair.site.k, dtype=pair.A.dtype, generator=torch.Generator().manual_seed(seed))
    pair.A.grad = (pair.site.scale * pair.B.T @ G).detach()
    pair.B.grad = (pair.site.scale * G @ pair.A.T).detach()
    return G


def transform(attached: Any) -> None:
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    run = Run(0, 10, attached.model, attached.modules, None, 0, lambda t: t)
    for part in composition.parts:
        part.after_backward(run)


def step_of(pair: Any) -> Tensor:
    """What the gradients of A and B do to the weight."""
    return (pair.site.scale * (pair.B @ pair.A.grad + pair.B.grad @ pair.A)).detach()


def onto(columns: Tensor) -> Tensor:
    """The projection on the span of the columns."""
    return columns @ torch.linalg.pinv(columns)


def projected(pair: Any, G: Tensor) -> Tensor:
    by_B, by_A = onto(pair.B.detach()), onto(pair.A.detach().T)
    return by_B @ G + (G - by_B @ G) @ by_A


SHAPES = pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])


@SHAPES
def test_the_step_of_the_weight_is_the_projection_of_its_gradient(d: int, k: int) -> None:
    attached = model_of((d, k))
    pair = attached.modules["0"]
    G = full_gradient(pair)
    transform(attached)
    E = step_of(pair)
    assert torch.allclose(E, projected(pair, G), atol=1e-11)
    assert (pair.B.T @ (G - E)).abs().max() < 1e-11
    assert ((G - E) @ pair.A.T).abs().max() < 1e-11


@SHAPES
def test_no_other_gradients_come_closer_to_that_of_the_weight(d: int, k: int) -> None:
    """All steps s (B a + b A) as one linear map of the numbers in a and b."""
    attached = model_of((d, k))
    pair = attached.modules["0"]
    G, (A, B), s = full_gradient(pair), (pair.A.detach(), pair.B.detach()), pair.site.scale
    by_a = s * torch.kron(B, torch.eye(k, dtype=A.dtype))  # of a, row by row
    by_b = s * torch.kron(torch.eye(d, dtype=A.dtype), A.T.contiguous())
    every_step = torch.cat([by_a, by_b], dim=1)
    best = every_step @ torch.linalg.lstsq(every_step, G.reshape(-1, 1), driver="gelsd").solution
    transform(attached)
    assert torch.allclose(step_of(pair), best.reshape(d, k), atol=1e-10)


@SHAPES
def test_of_all_gradients_with_that_step_the_nearest_to_the_own_ones_are_taken(d: int, k: int) -> None:
    """a + Y A and b - B Y make the same step for every Y (r, r)."""
    attached = model_of((d, k))
    pair = attached.modules["0"]
    full_gradient(pair)
    own_a, own_b = pair.A.grad.clone(), pair.B.grad.clone()
    transform(attached)
    A, B, a, b = pair.A.detach(), pair.B.detach(), pair.A.grad, pair.B.grad
    assert ((a - own_a) @ A.T - B.T @ (b - own_b)).abs().max() < 1e-10  # the slope by Y at Y = 0
    nearest = (a - own_a).square().sum() + (b - own_b).square().sum()
    step = step_of(pair)
    for seed in range(5):
        Y = 0.1 * torch.randn(3, 3, dtype=A.dtype, generator=torch.Generator().manual_seed(seed))
        pair.A.grad, pair.B.grad = a + Y @ A, b - B @ Y
        assert torch.allclose(step_of(pair), step, atol=1e-11)
        assert (pair.A.grad - own_a).square().sum() + (pair.B.grad - own_b).square().sum() > nearest


def test_the_loss_falls_at_the_rate_of_the_step_squared() -> None:
    attached = model_of((9, 14))
    pair = attached.modules["0"]
    full_gradient(pair)
    own_a, own_b = pair.A.grad.clone(), pair.B.grad.clone()
    transform(attached)
    fall = (own_a * pair.A.grad).sum() + (own_b * pair.B.grad).sum()
    assert fall.item() == pytest.approx(step_of(pair).square().sum().item(), rel=1e-11)


def test_neither_the_basis_of_the_pair_nor_the_factor_changes_the_step() -> None:
    steps = []
    mixed = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) + 2 * torch.eye(3)
    for scale, change in ((2.0, torch.eye(3, dtype=torch.float64)), (2.0, mixed), (0.5, mixed)):
        attached = model_of((9, 14), scale=scale)
        pair = attached.modules["0"]
        with torch.no_grad():
            pair.A.copy_(torch.linalg.solve(change, pair.A))
            pair.B.copy_(pair.B @ change)
        full_gradient(pair)
        transform(attached)
        steps.append(step_of(pair))
    assert torch.allclose(steps[0], steps[1], atol=1e-10)
    assert torch.allclose(steps[0], steps[2], atol=1e-10)


def test_in_the_first_step_a_is_zero_and_b_is_divided_by_the_square_of_A() -> None:
    attached = model_of((9, 14))
    pair = attached.modules["0"]
    with torch.no_grad():
        pair.B.zero_()
    G = full_gradient(pair)
    own_b = pair.B.grad.clone()
    transform(attached)
    A = pair.A.detach()
    assert not pair.A.grad.any()
    assert torch.allclose(pair.B.grad, own_b @ torch.linalg.inv(A @ A.T) / pair.site.scale**2, atol=1e-11)
    assert torch.allclose(step_of(pair), G @ onto(A.T), atol=1e-11)


@pytest.mark.parametrize("lost", ["a column of B", "a row of A", "both", "all of A"])
def test_a_pair_of_less_than_full_rank_still_projects(lost: str) -> None:
    attached = model_of((9, 14))
    pair = attached.modules["0"]
    with torch.no_grad():
        if lost in ("a column of B", "both"):
            pair.B[:, 1] = 2 * pair.B[:, 0]
        if lost in ("a row of A", "both"):
            pair.A[2] = 0.0
        if lost == "all of A":
            pair.A.zero_()
    G = full_gradient(pair)
    transform(attached)
    assert torch.allclose(step_of(pair), projected(pair, G), atol=1e-10)


@pytest.mark.parametrize(("apart", "as_if_equal"), [(1e-3, False), (1e-6, True)])
def test_columns_nearly_equal_are_told_apart_in_float32_until_they_are_noise(apart: float, as_if_equal: bool) -> None:
    attached = model_of((90, 140))
    pair = attached.modules["0"]
    with torch.no_grad():
        pair.B[:, 1] = 2 * pair.B[:, 0] + apart * pair.B[:, 1]
    G = full_gradient(pair)
    for p in (pair.A, pair.B):
        gradient = p.grad.float()
        p.grad = None
        p.data = p.data.float()
        p.grad = gradient
    transform(attached)
    if as_if_equal:
        assert pair.A.grad.norm() < 100 * G.norm()
    found = step_of(pair).double()
    B = pair.B.detach().double()
    if as_if_equal:
        B = B[:, [0, 2]]
    by_B, by_A = onto(B), onto(pair.A.detach().double().T)
    expected = by_B @ G + (G - by_B @ G) @ by_A
    assert (found - expected).norm() <= 0.02 * expected.norm()


def test_a_rank_above_the_outputs_still_projects() -> None:
    attached = model_of((2, 14))
    pair = attached.modules["0"]
    G = full_gradient(pair)
    transform(attached)
    assert torch.allclose(step_of(pair), G, atol=1e-10)


def test_pairs_of_several_ranks_are_each_changed_as_if_alone() -> None:
    shapes, ranks = ((9, 14), (5, 9), (8, 5)), (3, 2, 3)
    attached = model_of(*shapes, ranks=ranks)
    G = [full_gradient(pair, seed) for seed, pair in enumerate(attached.modules.values())]
    transform(attached)
    for pair, of_weight in zip(attached.modules.values(), G, strict=True):
        assert torch.allclose(step_of(pair), projected(pair, of_weight), atol=1e-11)


def test_the_change_is_linear_so_that_clipping_before_it_is_clipping_after_it() -> None:
    found = []
    for clip in (1.0, 0.25):
        attached = model_of((9, 14))
        pair = attached.modules["0"]
        full_gradient(pair)
        pair.A.grad *= clip
        pair.B.grad *= clip
        transform(attached)
        found.append(torch.cat([pair.A.grad.flatten(), pair.B.grad.flatten()]) / clip)
    assert torch.allclose(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_the_start_of_an_anchored_pair_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(14, 9)).double()
    attached = lrft.attach(model, {"method": ["lora-pro", "pissa"], "rank": 3})
    adapter = attached.modules["0"]
    G = full_gradient(adapter.inner)
    transform(attached)
    assert torch.allclose(step_of(adapter.inner), projected(adapter.inner, G), atol=1e-10)
    assert all(p.grad is None for p in adapter.start.parameters())


def test_float32_is_near_float64_with_a_small_B() -> None:
    """As after the first step: B is far smaller than A."""
    found = []
    for dtype in (torch.float64, torch.float32):
        attached = model_of((90, 140))
        pair = attached.modules["0"]
        with torch.no_grad():
            pair.B.mul_(1e-4)
        full_gradient(pair)
        for p in (pair.A, pair.B):
            gradient = p.grad.to(dtype)
            p.grad = None
            p.data = p.data.to(dtype)
            p.grad = gradient
        transform(attached)
        found.append(step_of(pair).double())
    assert (found[0] - found[1]).abs().max() <= 1e-4 * found[0].abs().max()


def steps_of_weight_moments() -> tuple[list[Tensor], list[Tensor]]:
    """(the weight's steps over minus the learning rate, those of the definition) of three steps with gradients of
    their own: each step's E projected, averaged by Adam in a dense layer, and projected again."""
    model = nn.Sequential(nn.Linear(14, 9)).double()
    attached = lrft.attach(model, {"method": {"lora-pro": {"moments": "weight"}}, "rank": 3, "scale": 2.0})
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    pair: Any = attached.modules["0"]
    with torch.no_grad():
        pair.B.copy_(torch.randn(pair.B.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    groups = [{"params": [pair.A, pair.B], "lr": 1e-6, "weight_decay": 0.0}]
    factors = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-3)
    dense = nn.Parameter(torch.zeros(9, 14, dtype=torch.float64))
    full = torch.optim.Adam([dense], lr=1.0, betas=(0.8, 0.95), eps=1e-3)
    found, wanted = [], []
    for step in range(3):
        G = full_gradient(pair, seed=step)
        held = [p.detach().clone() for p in (pair.A, pair.B)]
        with torch.no_grad():
            by_B, by_A = onto(held[1]), onto(held[0].T)
        before = dense.detach().clone()
        dense.grad = by_B @ G + (G - by_B @ G) @ by_A
        full.step()
        u = before - dense.detach()
        wanted.append(by_B @ u + (u - by_B @ u) @ by_A)
        run = Run(step, 10, attached.model, attached.modules, factors, 0, lambda t: t)
        for part in composition.parts:
            part.after_backward(run)
        factors.step()
        assert "exp_avg" not in factors.state.get(pair.A, {}), "AdamW has nothing to do"
        for part in composition.parts:
            part.after_step(run)
        a, b = ((old - p.detach()) / 1e-6 for old, p in zip(held, (pair.A, pair.B), strict=True))
        found.append(2.0 * (held[1] @ a + b @ held[0]))
    return found, wanted


def test_moments_of_the_weight_are_those_of_full_training_projected_on_what_the_pair_can_do() -> None:
    for found, wanted in zip(*steps_of_weight_moments(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7)


def test_weight_decay_shrinks_the_factors_as_adamw_does() -> None:
    attached = model_of((9, 14))
    pair = attached.modules["0"]
    part = compose.compose([("lora-pro", {"moments": "weight"})]).parts[-1]
    optimizer = torch.optim.AdamW([{"params": [pair.A, pair.B], "lr": 0.5, "weight_decay": 0.1}])
    run = Run(0, 10, attached.model, attached.modules, optimizer, 0, lambda t: t)
    before = {p: p.detach().clone() for p in (pair.A, pair.B)}
    for p in before:
        p.grad = torch.zeros_like(p)
    part.after_backward(run)
    part.after_step(run)
    for p, value in before.items():
        assert torch.allclose(p, 0.95 * value)
    kept = sum(tensor.numel() for name, tensor in optimizer.state[pair.A].items() if name != "step")
    assert kept == part.kept_numbers(9, 14, 3) == 2 * 9 * 14
    forecast = [
        optimizer_bytes(compose.compose([("lora-pro", {"moments": kind})]), attached, AdamW())
        for kind in ("factors", "weight")
    ]
    assert forecast[1] - forecast[0] == 4 * kept


WEIGHT = "{lora-pro: {moments: weight}}"


@pytest.mark.parametrize("other", ["roselora", "{fast-forward: {every: 2, after: 0}}"])
@pytest.mark.parametrize("form", ["lora-pro", WEIGHT])
def test_beside_others_the_order_in_the_recipe_changes_nothing(place: Place, form: str, other: str) -> None:
    """Who looks at gradients sees those of the passes, and who looks at the step sees the step."""

    def trained(name: str, *words: str) -> dict[str, Tensor]:
        out = place.train("training.max_steps=6", f"adapter.method=[{', '.join(words)}]", out=name)
        return {name: tensor for name, tensor in runs.tensors(out).items() if name.startswith("adapter/")}

    one, turned, alone = trained("one", other, form), trained("turned", form, other), trained("alone", form)
    assert runs.differing(one, turned) == []
    assert runs.distance(one, alone) > 1e-3, f"{other} does something"
    if other == "roselora":
        assert min((tensor == 0).float().mean().item() for tensor in one.values()) > 0.7


@pytest.mark.parametrize("moments", ["zero", "forget"])
def test_a_restart_forgets_the_running_means_of_the_weight(place: Place, moments: str) -> None:
    """Of four steps the third is the first one after it: its step E alone is in both means."""
    method = f"adapter.method=[lora, {{relora: {{restarts: 1, moments: {moments}}}}}, {WEIGHT}]"
    out = place.train("training.max_steps=4", "checkpoint.every=3", method)
    state = runs.tensors(runs.cut(out, 3, place.root / "cut"))
    names = [name.removesuffix("/mean") for name in state if name.endswith("/mean")]
    assert len(names) == 14
    for name in names:
        E = state[f"{name}/mean"] / (1 - 0.9)
        assert E.any()
        assert torch.allclose(state[f"{name}/square"], (1 - 0.999) * E.square(), rtol=1e-3, atol=0)
        assert state[f"{name}/step"] == (1 if moments == "forget" else 3)


def test_refused_where_the_update_is_no_plain_product_or_another_sets_the_gradients() -> None:
    model = nn.Sequential(nn.Linear(14, 9))
    for others, sentence in (
        (["lora+"], "both would set the learning rates of A and B"),
        (["preconditioned"], "both change the gradients of A and B"),
        (["dora"], "both would reparametrise magnitude and direction"),
        (["mora"], "lora-pro requires a pair of factors A and B; mora has no such pair"),
        (["sorsa"], "lora-pro requires a pair of factors A and B; sorsa has no such pair"),
        (["lora-fa"], "lora-pro requires a pair of factors A and B; lora-fa has no such pair"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(model, {"method": ["lora-pro", *others], "rank": 2})

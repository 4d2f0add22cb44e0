"""FedSVD's factorisation against a decomposition of the dense product, and what a run does between two of them."""

from __future__ import annotations

from typing import Any

import pytest
import runs
import tiny
import torch
from runs import Place
from torch import Tensor, nn

import lrft
from lrft.adapters import compose
from lrft.adapters.part import Run
from lrft.errors import RecipeError


def attach(d: int, k: int, rank: int, dtype: torch.dtype = torch.float64, method: Any = "fedsvd") -> tuple[Any, Any]:
    """(handle on one layer whose pair is random, AdamW after one step)."""
    torch.manual_seed(0)
    attached = lrft.attach(nn.Sequential(nn.Linear(k, d)).to(dtype), {"method": method, "rank": rank})
    optimizer = torch.optim.AdamW(attached.trained().values(), lr=1e-2)
    tiny.disturb(list(attached.trained().values()), size=1.0)
    for p in attached.trained().values():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return attached, optimizer


def after_step(attached: Any, optimizer: Any, step: int, total: int = 100) -> None:
    composition = compose.compose((entry["name"], entry["options"]) for entry in attached.methods)
    run = Run(step, total, attached.model, attached.modules, optimizer, 0, lambda t: t)
    for part in composition.parts:
        part.after_step(run)


@pytest.mark.parametrize(("d", "k", "rank"), [(9, 14, 3), (14, 9, 3), (6, 20, 6), (20, 6, 6), (9, 9, 1)])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_update_stays_and_its_factors_are_singular_vectors(
    d: int, k: int, rank: int, dtype: torch.dtype, rounding: float
) -> None:
    attached, optimizer = attach(d, k, rank, dtype)
    before = attached.delta("0")
    after_step(attached, optimizer, 9)
    A, B, s = attached.modules["0"].A.detach(), attached.modules["0"].B.detach(), attached.modules["0"].site.scale
    size = before.norm()
    assert (attached.delta("0") - before).norm() <= rounding * size
    assert (A @ A.T - torch.eye(rank, dtype=dtype)).norm() <= rounding
    lengths = B.norm(dim=0)
    assert torch.allclose(lengths * s, torch.linalg.svdvals(before)[:rank], rtol=1e-4 if rounding > 1e-6 else 1e-10)
    assert (lengths.diff() <= 0).all()
    assert (B.T @ B - torch.diag(lengths**2)).norm() <= rounding * (lengths**2).sum()
    _, _, Vh = torch.linalg.svd(before)
    overlap = (A @ Vh[:rank].T).abs()
    assert torch.allclose(overlap, torch.eye(rank, dtype=dtype), atol=1e3 * rounding)
    assert (A.sum(dim=1) >= 0).all()


def test_a_second_factorisation_changes_nothing() -> None:
    attached, optimizer = attach(9, 14, 3)
    after_step(attached, optimizer, 9)
    first = attached.state_dict()
    after_step(attached, optimizer, 19)
    for name, value in attached.state_dict().items():
        assert torch.allclose(value, first[name], atol=1e-12), name


def test_the_factors_depend_on_the_pair_alone() -> None:
    """Processes hold the same pair: they must find the same factors, signs included, whatever basis it is in."""
    found = []
    for sign in (1.0, -1.0):
        attached, optimizer = attach(9, 14, 3)
        with torch.no_grad():
            attached.modules["0"].A.mul_(sign)
            attached.modules["0"].B.mul_(sign)
        after_step(attached, optimizer, 9)
        found.append(attached.state_dict())
    for name in found[0]:
        assert torch.allclose(found[0][name], found[1][name], atol=1e-12), name


def test_an_update_of_zero_or_of_less_than_full_rank_stays_finite() -> None:
    for zeros in (3, 1):
        attached, optimizer = attach(9, 14, 3)
        with torch.no_grad():
            attached.modules["0"].B[:, :zeros] = 0.0
        before = attached.delta("0")
        after_step(attached, optimizer, 9)
        A, B = attached.modules["0"].A.detach(), attached.modules["0"].B.detach()
        assert torch.allclose(A @ A.T, torch.eye(3, dtype=A.dtype), atol=1e-12)
        assert B[:, 3 - zeros :].abs().max() < 1e-12
        assert torch.allclose(attached.delta("0"), before, atol=1e-12)


@pytest.mark.parametrize(
    ("every", "total", "expected"),
    [(10.0, 35, [9, 19, 29]), (0.25, 20, [4, 9, 14, 19]), (1.0, 3, [0, 1, 2]), (0.001, 3, [0, 1, 2]), (50.0, 20, [])],
)
def test_it_happens_after_every_so_many_steps(every: float, total: int, expected: list[int]) -> None:
    attached, optimizer = attach(9, 14, 3, method={"fedsvd": {"every": every}})
    at = []
    for step in range(total):
        tiny.disturb(list(attached.trained().values()))
        before = attached.state_dict()["0.A"]
        after_step(attached, optimizer, step, total)
        if not torch.equal(attached.state_dict()["0.A"], before):
            at.append(step)
    assert at == expected


def test_moments_begin_anew_and_only_then() -> None:
    attached, optimizer = attach(9, 14, 3)
    after_step(attached, optimizer, 8)
    values = [value for p in attached.trained().values() for value in optimizer.state[p].values()]
    assert len(values) == 2 * 3
    assert all(value.any() for value in values)
    after_step(attached, optimizer, 9)
    assert not any(value.any() for value in values)


@pytest.mark.parametrize(("d", "k"), [(9, 14), (14, 9)])
def test_mapped_moments_are_those_of_the_same_gradients_in_the_new_pair(d: int, k: int) -> None:
    """Moments of one gradient G of the weight: of B it is G A', of A B' G, in each pair. Squares follow where T is a
    turn by right angles, as it is for a pair that is singular vectors in another order."""
    attached, optimizer = attach(d, k, 3, method={"fedsvd": {"moments": "map"}})
    module = attached.modules["0"]
    G = torch.randn(d, k, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    a, b = optimizer.state[module.A], optimizer.state[module.B]

    def expected() -> tuple[Tensor, Tensor]:
        return module.B.detach().T @ G, G @ module.A.detach().T

    for state, slope in zip((a, b), expected(), strict=True):
        state["exp_avg"].copy_(slope)
    after_step(attached, optimizer, 9)
    for state, slope in zip((a, b), expected(), strict=True):
        assert torch.allclose(state["exp_avg"], slope, rtol=1e-9, atol=1e-11)
        assert state["step"] == 1
        assert (state["exp_avg_sq"] > 0).all()
    with torch.no_grad():  # the same pair in another order and with other signs
        order, signs = torch.tensor([2, 0, 1]), torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        module.A.copy_(signs[:, None] * module.A[order])
        module.B.copy_(module.B[:, order] * signs)
    for state, slope in zip((a, b), expected(), strict=True):
        state["exp_avg_sq"].copy_(slope.square())
    after_step(attached, optimizer, 19)
    for state, slope in zip((a, b), expected(), strict=True):
        assert torch.allclose(state["exp_avg_sq"], slope.square(), rtol=1e-9, atol=1e-11)


def pairs(run: Run) -> dict[str, tuple[Tensor, Tensor]]:
    return {site: (adapter.A.detach().clone(), adapter.B.detach().clone()) for site, adapter in run.adapters.items()}


@pytest.mark.parametrize("train_A", [False, True])
def test_in_a_run_A_stands_still_between_two_factorisations(
    place: Place, monkeypatch: pytest.MonkeyPatch, train_A: bool
) -> None:
    """With weight decay, which moves what has no gradient. Factorised after steps 2, 4 and 6."""
    seen: list[dict[str, tuple[Tensor, Tensor]]] = []
    runs.add_parts(monkeypatch, runs.At("before_step", 0, lambda run: seen.append(pairs(run))))
    words = f"adapter.method={{fedsvd: {{every: 2, train_A: {str(train_A).lower()}}}}}"
    run = place.train(words, "training.weight_decay=0.5", "training.warmup_steps=0")
    assert len(seen) == runs.STEPS
    for step in range(1, runs.STEPS):
        for site, (A, B) in seen[step].items():
            moved = not torch.equal(A, seen[step - 1][site][0])
            assert moved == (train_A or step % 2 == 0), (step, site)
            assert not torch.equal(B, seen[step - 1][site][1]), (step, site)
            if step % 2 == 0:
                assert (A @ A.T - torch.eye(len(A))).norm() < 1e-5
    losses = [record["loss"] for record in runs.records(run)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("moments", ["forget", "map"])
def test_a_resumed_run_is_the_run(place: Place, moments: str) -> None:
    keys = (
        f"adapter.method={{fedsvd: {{every: 2, moments: {moments}}}}}", "adapter.dropout=0.1",
        "training.weight_decay=0.1", "checkpoint.every=1", "checkpoint.keep=9",
    )  # fmt: skip
    whole = place.train(*keys)
    for step in range(1, runs.STEPS):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(part), runs.tensors(whole)) == []


def test_refused_without_a_pair_or_where_rates_are_set_or_beyond_the_layer() -> None:
    model = nn.Sequential(nn.Linear(14, 9))
    for words, sentence in (
        (
            {"method": ["fedsvd", "lora+"]},
            "set the learning rates of A and B|change the gradients of A and B",
        ),
        (
            {"method": ["fedsvd", "lora-pro"]},
            "set the learning rates of A and B|change the gradients of A and B",
        ),
        ({"method": ["fedsvd", "mora"]}, "fedsvd requires a pair of factors A and B; mora has no such pair"),
        ({"method": "fedsvd", "rank": 10}, "a 9 x 14 layer has no 10 singular vectors: lower the rank"),
    ):
        with pytest.raises(RecipeError, match=sentence):
            lrft.attach(model, {"rank": 2, **words})

"""Fast Forward: how far it goes on a parabola, what it leaves alone, and real runs with it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from runs import Place
from torch import nn

from lrft import registry
from lrft.adapters.part import Run
from lrft.errors import RecipeError
from lrft.methods.fast_forward import FastForward

METHOD = "adapter.method=[lora, {fast-forward: {every: 2, after: 0}}]"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("fast-forward"))


def run_with(p: nn.Parameter, loss: Callable[[], float | None], step: int = 0, total: int = 10) -> Run:
    optimizer = torch.optim.AdamW([p], lr=0.1)
    return Run(step, total, nn.Identity(), {}, optimizer, 0, lambda t: t, held_out=loss)


def one(part: FastForward, run: Run, p: nn.Parameter, change: float | None) -> None:
    """One step of the loop; its change is that of the optimiser or, when given, just this."""
    part.before_step(run)
    p.grad = torch.ones_like(p)
    part.after_backward(run)
    run.optimizer.step()
    if change is not None:
        with torch.no_grad():
            p.copy_(start() + change)
    part.after_step(run)


def start() -> torch.Tensor:
    return torch.arange(1.0, 7.0).reshape(2, 3) / 7


@pytest.mark.parametrize("best", [0.0, 0.4, 0.6, 2.3, 7.2, 25.8])
def test_it_stops_at_the_integer_that_minimises_a_parabola(best: float) -> None:
    """Loss (k - best)^2 of theta + k d: the lowest integer, and theta + k d in its bits."""
    p, d = nn.Parameter(start()), 0.1
    part = FastForward(every=1, after=0)
    asked: list[float] = []

    def loss() -> float:
        k = (p.detach() - start()).mean().item() / d - 1
        asked.append((k - best) ** 2)
        return asked[-1]

    one(part, run_with(p, loss), p, d)
    k = min(range(40), key=lambda k: (k - best) ** 2)
    after = start() + d
    assert torch.equal(p.detach(), after + k * (after - start()))
    assert len(asked) == k + 2
    assert min(asked[1:]) <= asked[1]


@pytest.mark.parametrize("losses", [[1.0, math.nan], [math.nan, 0.5], [1.0, math.inf], [1.0, 1.0]])
def test_what_is_not_lower_is_undone_to_the_bit(losses: list[float]) -> None:
    p = nn.Parameter(start())
    given = iter([0.0, *losses])
    one(FastForward(every=1, after=0), run_with(p, lambda: next(given)), p, 0.3)
    assert torch.equal(p.detach(), start() + 0.3)


def test_it_stops_at_its_limit() -> None:
    p = nn.Parameter(start())
    given = iter(range(0, -100, -1))
    one(FastForward(every=1, after=0, most=5), run_with(p, lambda: next(given)), p, 0.5)
    assert torch.allclose(p.detach(), start() + 6 * 0.5)


def test_a_step_that_changed_nothing_is_not_repeated() -> None:
    p = nn.Parameter(start())
    one(FastForward(every=1, after=0), run_with(p, lambda: 1.0), p, 0.0)
    assert torch.equal(p.detach(), start())


def test_the_optimisers_state_is_left_alone() -> None:
    states = []
    for most in (1, 50):
        p = nn.Parameter(start())
        given = iter(range(0, -100, -1))
        run = run_with(p, lambda given=given: next(given))  # type: ignore[misc]
        one(FastForward(every=1, after=0, most=most), run, p, None)
        states.append({name: t.clone() for name, t in run.optimizer.state[p].items()})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_when_it_acts() -> None:
    p = nn.Parameter(start())

    def due(part: FastForward, total: int) -> list[int]:
        return [step + 1 for step in range(total) if part.is_due(run_with(p, lambda: 1.0, step, total))]

    assert due(FastForward(after=0), 20) == [6, 12, 18]
    assert due(FastForward(every=0.25, after=0.3), 20) == [10, 15, 20]
    assert due(FastForward(every=2, after=1.0), 20) == []


def test_a_skipped_step_leaves_nothing_behind() -> None:
    """fp16: `after_step` is not called, and the next step is not due."""
    p = nn.Parameter(start())
    part = FastForward(every=2, after=0)
    part.after_backward(run_with(p, lambda: 1.0, 1))
    assert part.before
    part.after_backward(run_with(p, lambda: 1.0, 2))
    assert not part.before


def counted(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every validation loss that is asked for within steps."""
    said: list[float] = []
    from lrft.training import step
    from lrft.training.validation import held_out_loss

    def noted(session: Any) -> float | None:
        found = held_out_loss(session)
        said.append(math.nan if found is None else found)
        return found

    monkeypatch.setattr(step, "held_out_loss", noted)
    return said


def test_a_run_goes_further_and_its_validation_loss_never_rises_by_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = counted(monkeypatch)
    # After one step both runs are the same: the first attempt is at the second.
    keys = ("training.max_steps=2", "evaluation.every=1")
    plain = place.train(*keys, out="plain")
    assert said == []
    fast = place.train(METHOD, *keys, out="fast")
    without, with_it = runs.records(plain, "eval")[-1]["loss"], runs.records(fast, "eval")[-1]["loss"]
    assert len(said) > 2, "it went on at least once"
    assert said[0] == pytest.approx(without, rel=1e-6)
    assert with_it == pytest.approx(min(said), rel=1e-6)
    assert with_it < without
    # theta_2 + k (theta_2 - theta_1), with what the plain run says of both
    first = runs.tensors(place.train("training.max_steps=1", "training.lr_scheduler=constant", out="x"))
    assert runs.tensors(plain).keys() == runs.tensors(fast).keys()
    assert first
    names = [name for name in runs.tensors(plain) if "optimizer" in name]
    assert names
    assert all(torch.equal(runs.tensors(plain)[name], runs.tensors(fast)[name]) for name in names)


def test_resumed_it_ends_in_the_same_bits(place: Place) -> None:
    keys = (METHOD, "checkpoint.every=1", "checkpoint.keep=9")
    straight = place.train(*keys, out="straight")
    for step in (1, 2, 3):
        cut = runs.cut(straight, step, place.root / f"cut{step}")
        resumed = place.train(*keys, out=cut.name, resume="last")
        assert runs.differing(runs.tensors(straight), runs.tensors(resumed)) == []


def test_without_validation_rows_it_stops_before_the_first_step(place: Place, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"requires validation rows; data\.validation is none"):
        place.train(METHOD, "data.validation=none", out="none")
    assert not (place.root / "none").exists()


@pytest.mark.parametrize("other", ["lora+", "rslora", "dora", "pissa", "tempbalance", "preconditioned", "mora"])
def test_it_goes_with(other: str) -> None:
    assert registry.conflicts([other, "fast-forward"], dropout=0, alpha_given=False) == []


@pytest.mark.parametrize("other", ["galore", "fira", "frugal", "flora", "hra"])
def test_it_does_not_go_with(other: str) -> None:
    assert registry.conflicts([other, "fast-forward"], dropout=0, alpha_given=False)

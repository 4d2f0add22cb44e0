"""The plan of a search: what is trained for how long, within a stated time. Pure numbers, no run."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrft.errors import UsageError
from lrft.tuning.candidates import beyond, rates_around, read_over, read_rates
from lrft.tuning.rungs import EXTENSIONS, LEAST_STEPS, Cost, Rung, make_rungs, plan, seconds_of
from lrft.tuning.search import cost_of

costs = st.builds(Cost, st.floats(0.001, 10), st.floats(0, 60))


@given(st.integers(2, 60), st.integers(1, 100_000))
def test_each_rung_trains_fewer_for_longer_and_the_last_as_the_recipe(candidates: int, full: int) -> None:
    rungs = make_rungs(candidates, full)
    assert (rungs[0].candidates, rungs[-1].steps) == (candidates, full)
    for before, after in itertools.pairwise(rungs):
        assert 2 <= after.candidates <= before.candidates
        assert after.steps > before.steps >= LEAST_STEPS
        assert after.steps == pytest.approx(3 * before.steps, abs=3)


def test_seven_rates_of_nine_hundred_steps() -> None:
    assert make_rungs(7, 900) == [Rung(100, 7), Rung(300, 3), Rung(900, 2)]
    assert make_rungs(2, 900) == [Rung(900, 2)]
    assert make_rungs(7, 5) == [Rung(5, 7)]


@given(st.integers(2, 30), st.integers(LEAST_STEPS, 5000), st.floats(1, 1e5), costs)
def test_a_plan_fits_into_the_time_and_no_longer_one_does(
    candidates: int, full: int, budget: float, cost: Cost
) -> None:
    """Counted again, with the runs beyond the range; longer by hundredths of the recipe's length."""

    def seconds(steps: int) -> float:
        rungs = make_rungs(candidates, steps)
        made = [(rung.steps, rung.candidates) for rung in rungs]
        made += [(rung.steps, EXTENSIONS) for rung in (rungs[0], rungs[-1])[: len(rungs)]]
        return sum(n * (cost.run + cost.step * steps) for steps, n in made)

    try:
        steps = plan(candidates, full, budget, cost)[-1].steps
    except UsageError:
        assert seconds(LEAST_STEPS) > budget
        return
    assert seconds(steps) <= budget * (1 + 1e-9)
    longer = [n for n in {full * share // 100 for share in range(101)} if n > steps]
    assert all(seconds(n) > budget * (1 - 1e-9) for n in longer)


def test_without_a_stated_time_the_last_rung_is_the_recipe() -> None:
    assert plan(7, 900, None, None) == make_rungs(7, 900)
    assert plan(7, 900, 1e9, Cost(0.1, 5)) == make_rungs(7, 900)
    assert plan(7, 900, 300, Cost(0.1, 1))[-1].steps < 900


def test_what_a_run_costs() -> None:
    """The median step, and the rest of the run's time: the slow first step is no step's cost."""
    assert cost_of([5.0, 1.0, 1.0, 1.0], 20.0) == Cost(1.0, 16.0)
    assert cost_of([], 3.0) == Cost(0.0, 3.0)


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("1h30m", 5400), ("90s", 90), ("2h", 7200)])
def test_times(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "0m", "half an hour", "1d", "-3m"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a time"):
        seconds_of(text)


def test_rates_around_one_and_beyond() -> None:
    rates = rates_around(2e-4)
    assert rates == [6.3e-6, 2e-5, 6.3e-5, 2e-4, 6.3e-4, 2e-3, 6.3e-3]
    assert (beyond(rates, 6.3e-3), beyond(rates, 6.3e-6), beyond(rates, 2e-4)) == (0.02, 2e-6, None)


@pytest.mark.parametrize("text", ["1e-3", "1e-3,0", "1e-3,x", "1e-3,inf", ""])
def test_rates_that_cannot_be_tried_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rates"):
        read_rates(text)


def test_ranks_and_methods(recipe) -> None:  # type: ignore[no-untyped-def]
    assert read_over(["rank"], recipe) == {"rank": [4, 8, 16]}
    assert read_over(["rank=2,32", "method=lora,dora"], recipe) == {"rank": [2, 32], "method": ["lora", "dora"]}
    for wrong, said in (
        ("size", "expected rank"),
        ("rank=", "expected rank"),
        ("rank=0", "not a rank"),
        ("method", "say which"),
        ("method=lroa", "not a method"),
    ):
        with pytest.raises(UsageError, match=said):
            read_over([wrong], recipe)


@pytest.fixture
def recipe(tmp_path):  # type: ignore[no-untyped-def]
    from lrft import recipe as recipes

    (tmp_path / "r.yaml").write_text("model: m\ndata: d\nadapter: {rank: 8}\noutput_dir: o\n")
    return recipes.load(tmp_path / "r.yaml")

"""Student's t against tables, closed forms and another program's beta function; intervals by hand; the Pareto front."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrft.compare.intervals import incomplete_beta, mean, paired, pareto, spread, t_below, t_quantile

# Two-sided 95 %, as printed in any book of tables.
TABLE = {
    **{1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228},
    **{15: 2.131, 20: 2.086, 30: 2.042, 60: 2.000, 120: 1.980},
}


@pytest.mark.parametrize(("freedom", "value"), TABLE.items())
def test_quantiles_are_those_of_the_table(freedom: int, value: float) -> None:
    assert round(t_quantile(0.975, freedom), 3) == value


@pytest.mark.parametrize("p", [0.5, 0.6, 0.9, 0.975, 0.995, 0.99999])
def test_quantiles_with_a_closed_form(p: float) -> None:
    assert t_quantile(p, 1) == pytest.approx(math.tan(math.pi * (p - 0.5)), rel=1e-10, abs=1e-12)
    a = 4 * p * (1 - p)
    assert t_quantile(p, 2) == pytest.approx(2 * (p - 0.5) * math.sqrt(2 / a), rel=1e-10, abs=1e-12)


@given(st.floats(0, 1), st.floats(0.5, 300), st.floats(0.5, 300))
@settings(max_examples=200, deadline=None)
def test_the_beta_function_is_that_of_mpmath(x: float, a: float, b: float) -> None:
    assert incomplete_beta(x, a, b) == pytest.approx(float(mpmath.betainc(a, b, 0, x, regularized=True)), abs=1e-12)


@given(st.floats(0.5, 0.9999), st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_the_quantile_is_the_inverse(p: float, freedom: int) -> None:
    assert t_below(t_quantile(p, freedom), freedom) == pytest.approx(p, abs=1e-12)


def test_mean_and_spread() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 17)
    assert mean(list(values)) == pytest.approx(values.mean(), rel=1e-14)
    assert spread(list(values)) == pytest.approx(values.std(ddof=1), rel=1e-13)
    assert spread([4.0]) is None


def test_a_paired_interval_by_hand() -> None:
    # differences 1, 2, 3: mean 2, s = 1, half = 4.3027 / sqrt(3)
    found = paired([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.n, found.mean) == (3, 2.0)
    assert found.low == pytest.approx(2 - 2.4841377, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.4841377, abs=1e-6)


def test_one_pair_gives_no_interval() -> None:
    found = paired([1.0], [3.0])
    assert (found.n, found.mean, found.low, found.high) == (1, -2.0, None, None)


def test_pairs_do_not_care_for_what_is_common_to_a_seed() -> None:
    rng = np.random.default_rng(1)
    a, b, common = rng.normal(size=(3, 6))
    found, shifted = paired(list(a), list(b)), paired(list(a + 100 * common), list(b + 100 * common))
    assert shifted.high == pytest.approx(found.high, abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    draws = rng.normal(0.3, 1.0, (4000, 2, 4))
    held = 0
    for a, b in draws:
        found = paired(list(a + 0.5), list(b))
        held += found.low <= 0.5 <= found.high
    assert 0.94 < held / len(draws) < 0.96


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    front = set(pareto(points))
    for i, (cost, bad) in enumerate(points):
        beaten = any((c <= cost and b < bad) or (c < cost and b <= bad) for c, b in points)
        assert (i in front) != beaten
    costs = [points[i][0] for i in pareto(points)]
    assert costs == sorted(costs)

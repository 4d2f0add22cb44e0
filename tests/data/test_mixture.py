"""Sources with shares of the steps: the shares hold at every step, and rows come as `stop` says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import lines, texts

from lrft import recipe
from lrft.data import BatchSchedule
from lrft.data.mixture import Mixture, Stop
from lrft.errors import RecipeError

SOURCES = st.lists(st.tuples(st.integers(1, 40), st.sampled_from([0.2, 0.5, 1.0, 3.0, 7.0])), min_size=1, max_size=4)
STOPS = st.sampled_from(["first", "last", "all"])


def mixture(sources: list[tuple[int, float]], stop: Stop, seed: int = 0, shuffle: bool = True) -> Mixture:
    edges = np.cumsum([0, *(n for n, _ in sources)])
    return Mixture([np.arange(a, b) for a, b in pairwise(edges)], [w for _, w in sources], stop, seed, shuffle)


def owners(made: Mixture, ids: np.ndarray) -> np.ndarray:
    """The source of each row."""
    return np.searchsorted(np.cumsum([len(m) for m in made.members]), ids, side="right")


@given(SOURCES, STOPS, st.booleans(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_shares_hold_in_every_stretch_and_rows_come_equally_often(
    sources: list[tuple[int, float]], stop: Stop, shuffle: bool, epoch: int
) -> None:
    made = mixture(sources, stop, shuffle=shuffle)
    orders = [made.order(e) for e in range(epoch + 1)]
    sizes, shares = np.array([n for n, _ in sources]), np.array([w for _, w in sources])
    counts = np.bincount(owners(made, orders[-1]), minlength=len(sizes))
    assert counts.tolist() == list(made.counts)
    if stop == "first":
        assert (counts <= sizes).all()
        assert (counts == sizes)[np.argmin(sizes / shares)]
        assert len(set(orders[0].tolist())) == len(orders[0])
    elif stop == "all":
        assert (counts >= sizes).all()
        assert counts[np.argmax(sizes / shares)] == max(sizes[np.argmax(sizes / shares)], 1)
        assert set(orders[0].tolist()) == set(range(sizes.sum()))
    else:
        assert sorted(orders[-1].tolist()) == list(range(sizes.sum()))
    # Over the epochs the rows of a source come equally often, to within one.
    times = np.bincount(np.concatenate(orders), minlength=sizes.sum())
    for ids in made.members:
        assert times[ids].max() - times[ids].min() <= 1
    # As long as no source has run out, each has its share of what has come so far.
    for k in range(len(sizes)):
        so_far = np.cumsum(owners(made, orders[-1]) == k)
        full = min(np.flatnonzero(np.cumsum(owners(made, orders[-1]) == j) == counts[j])[0] for j in range(len(sizes)))
        drawn = np.arange(1, full + 1)
        assert (np.abs(so_far[:full] - drawn * shares[k] / shares.sum()) <= 0.5 + len(sizes) / 2).all()


def test_a_step_is_a_function_of_seed_and_step() -> None:
    """Trust 37, for sources with shares."""
    made = mixture([(7, 1.0), (30, 2.0)], "all", seed=3)
    whole = BatchSchedule(sum(made.counts), 4, 3, None, 3, True, made)
    rows = [whole.rows(step).tolist() for step in range(whole.total_steps)]
    for step in (len(rows) - 1, 3, 14):
        again = BatchSchedule(sum(made.counts), 4, 3, None, 3, True, mixture([(7, 1.0), (30, 2.0)], "all", seed=3))
        assert again.rows(step).tolist() == rows[step]
    assert made.order(0).tolist() != made.order(1).tolist()
    assert made.order(0).tolist() != mixture([(7, 1.0), (30, 2.0)], "all", seed=4).order(0).tolist()
    plain = mixture([(4, 1.0), (4, 1.0)], "last", shuffle=False)
    assert plain.order(0).tolist() == plain.order(5).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    for wrong in ([(0, 1.0), (3, 1.0)], [(3, 0.0), (3, 1.0)]):
        with pytest.raises(ValueError):
            mixture(wrong, "first")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{train: [{path: a, weight: 1}]}", r"data\.train\.0\.weight has no effect: there is one entry"),
        ("{train: [{path: a, weight: 1}, b]}", r"data\.train\.1 has no weight, but others have"),
        ("{train: [{path: a, weight: 0}, {path: b, weight: 1}]}", r"data\.train\.0\.weight: .*above 0|greater than 0"),
        ("{train: [a, b], stop: all}", r"data\.stop has no effect"),
        ("{train: [{path: a, weight: 1}, {path: b, weight: 1}], stop: never}", r"data\.stop: .*first"),
    ],
)
def test_shares_that_mean_nothing(tmp_path: Path, data: str, says: str) -> None:
    (tmp_path / "r.yaml").write_text(f"model: base\noutput_dir: out\ndata: {data}\n")
    with pytest.raises(RecipeError, match=says):
        recipe.load(tmp_path / "r.yaml")


def test_a_source_without_rows_can_have_no_share(tmp_path: Path) -> None:
    from prepared import prepare

    from lrft.data.sampler import batch_schedule

    path = lines(tmp_path / "a.jsonl", *texts(20))
    (tmp_path / "r.yaml").write_text(
        f"model: base\noutput_dir: out\ndata: {{train: [{{path: {path}, weight: 1}}, {{path: {path}, weight: 2}}]}}\n"
    )
    made: Any = recipe.load(tmp_path / "r.yaml")
    rows = prepare(tmp_path, *made.data.train).train
    assert batch_schedule(made, rows).mixture.counts == (10, 20)
    with pytest.raises(RecipeError, match=r"r\.yaml:3:\d+ data\.train\.1\.weight: .* has no row to train on"):
        batch_schedule(made, rows.slice(range(20)))

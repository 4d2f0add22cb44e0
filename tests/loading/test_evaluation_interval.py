"""evaluation.every: auto: at most ten times, within its share of the time, from counts alone."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrft import recipe as recipes
from lrft.data import BatchSchedule
from lrft.errors import RecipeError
from lrft.loading import evaluation_interval as interval
from lrft.optim import lr_schedule
from lrft.recipe import Recipe


class Rows:
    """As many rows as there are lengths."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)

    def __len__(self) -> int:
        return len(self.lengths)


def recipe(*overrides: str) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yaml")
        path.write_text("model: m\ndata: t.jsonl\noutput_dir: r\n")
        return recipes.load(path, overrides)


PLAIN = recipe()


def prepared(train: list[int], validation: list[int] | None) -> Any:
    return SimpleNamespace(train=Rows(train), validation=None if validation is None else Rows(validation))


def with_evaluation(**keys: Any) -> Recipe:
    return PLAIN.model_copy(update={"evaluation": PLAIN.evaluation.model_copy(update=keys)})


def schedule(rows: int, batch: int = 4, epochs: float = 2.0) -> BatchSchedule:
    return BatchSchedule(rows, batch, epochs, None, 1, True)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=60),
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([0.5, 1.0, 3.0, 40.0]),
)
def test_auto_stays_within_its_share_and_ten(
    train: list[int], validation: list[int], samples: int, at_start: bool, epochs: float
) -> None:
    made, order = with_evaluation(samples=samples, at_start=at_start), schedule(len(train), epochs=epochs)
    data = prepared(train, validation)
    every, n = interval.evaluation_interval(made, data, order), interval.evaluations(made, data, order)
    assert every is not None
    due = [step for step in range(1, order.total_steps + 1) if lr_schedule.due(step, every, order.total_steps)]
    assert n == len(due) + at_start
    assert 1 <= len(due) <= interval.MOST
    cost = n * interval.evaluation_cost(made, data.validation)
    trained = interval.TRAINED * interval.tokens_of(data.train, order)
    assert len(due) == 1 or cost <= interval.SHARE * trained


def test_a_short_run_does_not_evaluate_eleven_times() -> None:
    """37 steps of 8 rows, 30 validation rows, three samples of 128 tokens."""
    data = prepared([60] * 296, [60] * 30)
    order = BatchSchedule(296, 8, 1.0, None, 1, True)
    assert order.total_steps == 37
    assert interval.evaluations(with_evaluation(), data, order) == 2
    assert interval.evaluations(with_evaluation(every=0.1), data, order) == 11, "what is given holds"
    assert interval.evaluation_interval(with_evaluation(every=5), data, order) == 5
    assert interval.evaluation_interval(with_evaluation(every="none"), data, order) is None
    assert interval.evaluation_interval(with_evaluation(), prepared([60] * 296, None), order) is None


def test_a_long_run_evaluates_ten_times_whatever_may_change_when_it_is_resumed() -> None:
    data, order = prepared([300] * 5000, [300] * 20), BatchSchedule(5000, 8, 1.0, None, 1, True)
    plain = with_evaluation()
    assert interval.evaluations(plain, data, order) == 11
    training = plain.training.model_copy(update={"micro_batch_size": 2, "gradient_checkpointing": "full"})
    changed = with_evaluation(micro_batch_size=3).model_copy(update={"training": training})
    assert interval.evaluation_interval(changed, data, order) == interval.evaluation_interval(plain, data, order)


def test_auto_is_a_word_of_evaluation_alone() -> None:
    assert PLAIN.evaluation.every == recipe("evaluation.every=auto").evaluation.every == "auto"
    with pytest.raises(RecipeError, match="or none; got the text 'auto'"):
        recipe("checkpoint.every=auto")
    with pytest.raises(RecipeError, match="or auto or none; got the text 'often'"):
        recipe("evaluation.every=often")

"""Runs whose rows are streamed: as runs of prepared rows, and exact when resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import runs
from runs import Place

from lrft import recipe
from lrft.errors import RecipeError
from lrft.training.run import train
from lrft.training.state import Options

STREAMED = ("data.streaming=true", "training.max_steps=6", "~training.epochs")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


def test_in_the_order_of_the_file_a_streamed_run_is_an_ordinary_one(place: Place) -> None:
    keys = ("data.shuffle=false", "adapter.dropout=0.1", "evaluation.every=3")
    plain = place.train(*keys, out="plain")
    streamed = place.train(*keys, *STREAMED, out="streamed")
    assert runs.differing(runs.tensors(plain), runs.tensors(streamed)) == []
    both = [[{**r, "epoch": 0} for r in runs.records(run)] for run in (plain, streamed)]
    assert both[0] == both[1]
    assert [r["epoch"] for r in runs.records(streamed)] == [0, 0, 1, 1, 1, 2]
    assert "streamed" in (streamed / "log.txt").read_text()
    assert "2 epochs done; 20 rows read" in (streamed / "log.txt").read_text()


def test_resumed_at_every_step_a_streamed_run_is_exact(place: Place) -> None:
    keys = (
        *STREAMED,
        "~data.validation",
        "data.window=3",
        "adapter.dropout=0.1",
        "checkpoint.every=1",
        "checkpoint.keep=9",
    )
    whole = place.train(*keys, out="whole")
    for step in (1, 2, 3, 5):
        part = runs.cut(whole, step, place.root / f"cut-{step}")
        place.train(*keys, out=part.name, resume="last")
        assert runs.differing(runs.tensors(whole), runs.tensors(part)) == []
        assert runs.records(part) == runs.records(whole)
    again = train(recipe.load(whole / "resolved.yaml", (f"output_dir={place.root / 'again'}",)), Options(quiet=True))
    assert runs.differing(runs.tensors(whole), runs.tensors(again)) == []


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (("data.streaming=true", "training.max_steps=null"), "data.streaming needs training.max_steps"),
        ((*STREAMED[:2], "training.epochs=2"), "a stream of rows ends by training.max_steps alone"),
        ((*STREAMED, "data.validation=0.1"), "no share of a stream can be held out"),
        ((*STREAMED, "data.train.0.limit=3"), "data.train.0.limit does not go with data.streaming"),
        ((*STREAMED, "training.objective=classification"), "its labels are numbered over all rows"),
        (("data.window=3",), "data.window has no effect"),
    ],
)
def test_what_a_stream_cannot_have_is_refused(place: Place, keys: tuple[str, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        place.recipe(*keys)

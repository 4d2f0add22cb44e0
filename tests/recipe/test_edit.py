"""Values written into the text of a recipe."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrft import recipe as recipes
from lrft.errors import UsageError
from lrft.recipe.edit import with_values
from lrft.recipe.nodes import Source, plain
from lrft.recipe.problems import Problems
from lrft.recipe.yaml_parser import parse

RATE = "training.learning_rate"


@pytest.mark.parametrize(
    ("text", "values", "made"),
    [
        (
            "model: m\ntraining:\n  # slow\n  learning_rate: 1e-4  # of the paper\n  epochs: 2\n",
            {RATE: 3e-3},
            "model: m\ntraining:\n  # slow\n  learning_rate: 0.003  # of the paper\n  epochs: 2\n",
        ),
        (
            "training:  # all of it\n    # two\n    epochs: 2\nmodel: m",
            {RATE: 1e-5},
            "training:  # all of it\n    learning_rate: 1.0e-05\n    # two\n    epochs: 2\nmodel: m",
        ),
        ("model: m  # end", {RATE: 0.1}, "model: m  # end\ntraining:\n  learning_rate: 0.1\n"),
        ("training:\nmodel: m\n", {RATE: 0.1}, "training:\n  learning_rate: 0.1\nmodel: m\n"),
        ("training:\n  learning_rate:  # soon\n", {RATE: 0.1}, "training:\n  learning_rate: 0.1  # soon\n"),
        ("training: {epochs: 1}\n", {RATE: 0.1}, "training: {learning_rate: 0.1, epochs: 1}\n"),
        ("training: {}\n", {RATE: 0.1}, "training: {learning_rate: 0.1}\n"),
        ('training: {"learning_rate": "${RATE}", epochs: 1}\n', {RATE: 0.1},
         'training: {"learning_rate": 0.1, epochs: 1}\n'),
        ("adapter: lora  # x\n", {"adapter.rank": 4}, "adapter: {method: lora, rank: 4}  # x\n"),
        ("adapter: lora\n", {"adapter.method": "dora", "adapter.rank": 4}, "adapter: {method: dora, rank: 4}\n"),
        ("adapter: [pissa, rslora]\n", {"adapter.rank": 4}, "adapter: {method: [pissa, rslora], rank: 4}\n"),
        ("adapter:\n  method: 'lora'\n  rank: 8\n", {"adapter.method": "dora"},
         "adapter:\n  method: dora\n  rank: 8\n"),
        ("adapter: {method: [pissa, {mora: {type: 6}}], rank: 8}\n", {"adapter.method": "dora"},
         "adapter: {method: dora, rank: 8}\n"),
    ],
)  # fmt: skip
def test_only_the_value_changes(text: str, values: dict[str, object], made: str) -> None:
    assert with_values(text, values) == made


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("adapter:\n  method:\n    - pissa\n    - rslora\n", "adapter.method", "dora"),
        ("adapter:\n  rank: |\n    8\n", "adapter.rank", 4),
    ],
)
def test_a_form_that_cannot_be_edited_is_refused(text: str, key: str, value: object) -> None:
    with pytest.raises(UsageError, match="on several lines"):
        with_values(text, {key: value})


@given(st.sampled_from(["epochs", "warmup_steps", "learning_rate"]), st.floats(1e-9, 1.0), st.sampled_from("  #\n"))
def test_everything_else_says_the_same(key: str, rate: float, between: str) -> None:
    text = f"model: m\ntraining:\n  {key}: 1 {between}\n  seed: 3\nadapter: {{rank: 2}}\n"
    before, after = (plain(parse(t, Source("x"), Problems())) for t in (text, with_values(text, {RATE: rate})))
    assert after["training"]["learning_rate"] == rate
    for found in (before, after):
        found["training"].pop("learning_rate", None)
    assert after == before


def test_the_result_is_a_recipe(tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = "model: m\ndata: d.jsonl\nadapter: lora\noutput_dir: out\n"
    path = tmp_path / "r.yaml"
    path.write_text(with_values(text, {RATE: 3e-4, "adapter.rank": 4}))
    found = recipes.load(path)
    assert (found.training.learning_rate, found.adapter.rank) == (3e-4, 4)

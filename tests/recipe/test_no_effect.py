"""Keys that can have no effect are refused, with the key that takes their ground away; defaults never are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import runs

from lrft import recipe
from lrft.cli.main import run_command
from lrft.errors import RecipeError
from lrft.recipe import no_effect

# A value that asks for something, for each key that can be idle.
WISHES: dict[str, Any] = {
    "training.early_stopping": "{patience: 2}",
    "evaluation.every": 50,
    "evaluation.samples": 1,
    "evaluation.max_new_tokens": 16,
    "evaluation.micro_batch_size": 1,
    "evaluation.metrics": "[f1]",
    "evaluation.best": "perplexity",
    "evaluation.sets": "{other: other.jsonl}",
    "checkpoint.keep": 5,
    "distributed.shard_over": "all",
}
GROUNDS = [(found.key, ground) for found in no_effect.KEYS for ground in found.grounds]


def load(tmp_path: Path, *overrides: str) -> recipe.Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: base\ndata: train.jsonl\noutput_dir: out\n")
    return recipe.load(path, overrides)


@pytest.mark.parametrize(("key", "ground"), GROUNDS)
def test_a_key_without_ground_is_refused_and_its_default_is_not(tmp_path: Path, key: str, ground: Any) -> None:
    off = [f"{name}={value}" for name, value in ground]
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *off, f"{key}={WISHES[key]}")
    assert len(caught.value.problems) == 1
    text = caught.value.problems[0].text
    assert text.startswith(f"{key} has no effect: ")
    assert all(f"{name} is {value}" in text for name, value in ground)
    assert caught.value.problems[0].place == f"argument {len(off) + 1}"
    default = no_effect._default(key)
    default = list(default) if isinstance(default, tuple) else default
    load(tmp_path, *off, f"{key}={'null' if default is None else default}")
    load(tmp_path, *off)
    load(tmp_path, f"{key}={WISHES[key]}")
    if key in ("evaluation.samples", "evaluation.every"):
        load(tmp_path, *off, f"{key}={0 if 'samples' in key else 'none'}")  # asks for nothing


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[runs.Place]:
    root = tmp_path_factory.mktemp("idle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LRFT_CACHE", str(root / "cache"))
        yield runs.Place.make(root)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["training.warmup_steps=7"], "training.warmup_steps: 7, but the run has 6 steps: 86% of"),
        (
            ["training.early_stopping={patience: 5}", "evaluation.every=1"],
            "patience: 5, but the run has 6 evaluations",
        ),
        (["training.early_stopping={patience: 1}", "evaluation.every=3"], "patience: 1, but the run has 2"),
        (
            ["training.early_stopping={patience: 1}", "evaluation.every=auto"],
            "has 1 evaluation, by evaluation.every: auto",
        ),
        (["model.revision=main"], "model.revision: has no effect"),
        (["training.early_stopping={patience: 1}", "data.validation=0.02", "evaluation.every=1"], "has no effect: no"),
    ],
)
def test_what_only_the_data_show_is_refused_before_weights_are_loaded(
    place: runs.Place, keys: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "data.validation=0.02" in keys:
        few = runs.write_rows(tmp_path / "few.jsonl", runs.rows(3))
        keys = [*keys, f"data.train={json.dumps(str(few))}", "training.warmup_steps=1"]
    for command in (["check"], ["plan"], ["train"], ["train", "--dry-run"]):
        assert run_command([command[0], str(place.root / "recipe.yaml"), *keys, *command[1:]]) == 2, command
        assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        (["logging.report_to=[swanlab]"], 5, "argument 2  logging.report_to: swanlab needs the package swanlab"),
        (["evaluation.sets={more: gone.jsonl}"], 3, "argument 2  evaluation.sets.more: gone.jsonl: no such file"),
        (["evaluation.metrics=['python:gone.py:score']"], 5, "evaluation.metrics: there is no file gone.py"),
        (["evaluation.metrics=[token_accuracy]", "training.objective=orpo"], 2, "orpo has no token_accuracy"),
        (["training.objective={sft: {router_aux_loss_coef: 0.1}}"], 2, "LlamaForCausalLM has no such loss"),
    ],
)
def test_check_refuses_what_the_start_of_training_refuses(
    place: runs.Place, keys: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if "training.objective=orpo" in keys:
        pairs = [{"prompt": f"{i}?", "chosen": "forty two", "rejected": "time"} for i in range(8)]
        data = json.dumps(str(runs.write_rows(tmp_path / "pairs.jsonl", pairs)))
        keys = [*keys, f"data.train={data}", f"data.validation={data}", "training.warmup_steps=1"]
    for command in ("check", "train"):
        recipe = str(place.root / "recipe.yaml")
        flags = ["--allow-code"] if command == "train" else []
        assert run_command([command, recipe, "evaluation.every=2", *keys, *flags]) == code, command
        assert says in capsys.readouterr().err


def test_what_can_just_have_an_effect_is_taken(place: runs.Place) -> None:
    assert run_command(["check", str(place.root / "recipe.yaml"), "training.warmup_steps=6"]) == 0
    for patience, at_start in ((4, "false"), (5, "true")):  # the start is something to compare with
        keys = [f"training.early_stopping={{patience: {patience}}}", "evaluation.every=1"]
        keys.append(f"evaluation.at_start={at_start}")
        assert run_command(["check", str(place.root / "recipe.yaml"), *keys]) == 0

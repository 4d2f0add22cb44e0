"""Runs of classifiers: with several methods, resumed, over processes, evaluated, merged; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import classifiers
import pytest
import runs
import torch
import two_processes
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from lrft.adapters.storage import read_adapter
from lrft.cli.main import app
from lrft.errors import LrftError
from lrft.export.merge import merge_adapter
from lrft.verification.run import verify_run

LEARN = ("evaluation.every=6", "evaluation.at_start=true", "training.max_steps=18", "training.epochs=9")


def figures(run: Path) -> list[dict[str, float]]:
    return [record["figures"] for record in runs.records(run, "eval")]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_run_learns_and_all_commands_know_it(name: str, tmp_path: Path) -> None:
    """The merged folder answers in a stock pipeline's way as the run's last evaluation says."""
    place = classifiers.place(tmp_path, name)
    run = place.train(*LEARN)
    before, *_, after = figures(run)
    assert list(after) == ["accuracy", "macro-F1", "Matthews"]
    assert after["accuracy"] > before["accuracy"]
    assert read_adapter(run / "last").head.labels == classifiers.LABELS
    merged = merge_adapter((run / "last").resolve(), run / "merged").out
    model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    texts = classifiers.rows(9, seed=1)
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in texts], padding=True, return_tensors="pt")).logits
    right = [model.config.id2label[k] == row["label"] for k, row in zip(logits.argmax(-1).tolist(), texts, strict=True)]
    assert sum(right) / len(right) == pytest.approx(after["accuracy"])
    assert all(finding.holds for finding in verify_run(run, (run / "last").resolve()))
    data = str(tmp_path / "validation.jsonl")
    for target in (run / "last", merged):
        done = CliRunner().invoke(app, ["eval", str(target), "--data", data, "--json"])
        found = json.loads(done.stdout)
        assert (found["figures"], found["texts"], found["samples"]) == (after, 9, [])
    for command in ("check", "plan", "preview"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml")])
        assert done.exit_code == 0, done.output
    assert "tokens, label " in done.output.replace("   ", ", ")
    runs.write_rows(tmp_path / "validation.jsonl", [{"text": "hello", "label": "fine"}])
    done = CliRunner().invoke(app, ["eval", str(run), "--data", data])
    assert done.exit_code != 0


@pytest.mark.parametrize(
    "method", ["lora", "dora", "mora", "pissa", "vera", "galore", "full", "lora-ensemble", "relora"]
)
def test_the_head_is_trained_beside_any_method(method: str, tmp_path: Path) -> None:
    """And resumed to the bit; a step's gradient does not depend on the micro-batch."""
    place = classifiers.place(tmp_path)
    keys = (f"adapter.method={method}", "training.max_steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    run = place.train(*keys)
    names = [name for name in runs.tensors(run) if "score" in name and "adapter" in name]
    assert names
    cut = runs.cut(run, 2, tmp_path / "cut")
    place.train(*keys, out="cut", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []
    single = place.train(*keys, "training.micro_batch_size=1", out="single")
    losses = [[record["loss"] for record in runs.records(each)] for each in (run, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("method", ["galore", "flora", "coap"])
def test_a_bias_of_the_head_is_trained_by_optimisers_of_matrices(method: str, tmp_path: Path) -> None:
    run = classifiers.place(tmp_path, "bert").train(f"adapter.method={method}", "training.max_steps=2")
    assert any(name.endswith("classifier.bias") and value.any() for name, value in runs.tensors(run).items())


def test_a_model_folder_is_evaluated_by_its_rows(tmp_path: Path) -> None:
    """A number may be a reward of two answers, or a score of a text; labels are neither."""
    pairs = [{"prompt": "time", "chosen": " hello", "rejected": f" {word}"} for word in ("what", "two", "forty", "a")]
    place = classifiers.place(tmp_path, made=pairs)
    run = place.train("training.objective=reward", "training.max_steps=2")
    merged = merge_adapter((run / "last").resolve(), run / "merged").out
    files = {"pairs": pairs, "scores": [{"text": "hello", "label": 0.5}], "labels": classifiers.rows(3)}
    for name, rows in files.items():
        runs.write_rows(tmp_path / f"{name}.jsonl", rows)
    found = {}
    for name in files:
        done = CliRunner().invoke(app, ["eval", str(merged), "--data", str(tmp_path / f"{name}.jsonl"), "--json"])
        found[name] = list(json.loads(done.stdout)["figures"]) if done.exit_code == 0 else str(done.exception)
    assert found["pairs"][0] == "reward accuracy"
    assert found["scores"][0] == "MSE"
    assert "label: must be a number" in found["labels"]
    runs.write_rows(tmp_path / "chat.jsonl", [{"messages": []}])
    done = CliRunner().invoke(app, ["eval", str(merged), "--data", str(tmp_path / "chat.jsonl")])
    assert "the columns messages, but the model answers with a number" in str(done.exception)
    assert "preference: chosen and rejected" in str(getattr(done.exception, "hint", ""))


def test_problems_by_their_rows(tmp_path: Path) -> None:
    made = classifiers.rows(18)
    several = [{"text": row["text"], "label": [row["label"], "short"][: 1 + (k % 2)]} for k, row in enumerate(made)]
    run = classifiers.place(tmp_path / "several", "bert", several).train(*LEARN)
    assert list(figures(run)[-1]) == ["micro-F1", "macro-F1"]
    assert read_adapter(run / "last").head.problem == "multi_label_classification"
    scored = [{"text": row["text"], "label": float(len(row["text"].split()))} for row in made]
    place = classifiers.place(tmp_path / "scored", "bert", scored)
    keys = ("training.objective={classification: {problem: regression}}", "training.learning_rate=0.003")
    run = place.train(*LEARN, *keys)
    start, *_, end = figures(run)
    assert end["MSE"] < start["MSE"]
    assert not math.isnan(end["Spearman"])
    merged = merge_adapter((run / "last").resolve(), run / "merged").out
    assert AutoModelForSequenceClassification.from_pretrained(merged).config.problem_type == "regression"
    balanced = "training.objective={classification: {class_weights: balanced}}"
    run = classifiers.place(tmp_path / "balanced", "bert", classifiers.rows(18)[:-3]).train(*LEARN, balanced)
    assert read_adapter(run / "last").head.weights == pytest.approx((1.0, 1.0, 1.0), abs=0.3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (("data.packing=true",), "data.packing: classification trains a head, which answers each row by itself"),
        (("training.objective={classification: {class_weights: [1.0]}}",), "class_weights has 1 numbers"),
        (("training.objective={classification: {problem: both}}",), "problem"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: tuple[str, ...], message: str, tmp_path: Path) -> None:
    place = classifiers.place(tmp_path)
    with pytest.raises(LrftError, match=message):
        place.train(*keys)


@pytest.mark.slow
def test_two_processes_train_the_same_classifier(tmp_path: Path) -> None:
    place = classifiers.place(tmp_path, made=classifiers.rows(9))
    keys = (*two_processes.KEYS, "evaluation.samples=0")
    one = place.train(*keys, out="one")
    two_processes.launch(place, "two", *keys)
    two = tmp_path / "two"
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    for a, b in zip(figures(one), figures(two), strict=True):
        assert a == pytest.approx(b)

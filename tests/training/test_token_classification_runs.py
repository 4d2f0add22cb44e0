"""Runs that label words: evaluated, merged, resumed, over processes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import classifiers
import pytest
import runs
import torch
import two_processes
from peft import PeftModel
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner

from lrft.adapters.storage import read_adapter
from lrft.cli.main import app
from lrft.export.merge import merge_adapter
from lrft.verification.run import verify_run

LEARN = ("evaluation.every=6", "evaluation.at_start=true", "training.max_steps=18", "training.epochs=9")


def tagged(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Words whose label is told by the word itself."""
    chosen, made = random.Random(seed), []
    for _ in range(n):
        words = [chosen.choice(["hello", "world", "time", "what", "forty"]) for _ in range(chosen.randint(2, 8))]
        labels = ["B-T" if word == "time" else "B-N" if word == "forty" else "O" for word in words]
        made.append({"tokens": words, "tags": labels})
    return made


def place_of(root: Path, name: str = "bert", n: int = 24) -> runs.Place:
    place = classifiers.place(root, name)
    runs.write_rows(root / "train.jsonl", tagged(n))
    runs.write_rows(root / "validation.jsonl", tagged(9, seed=1))
    recipe = root / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("objective: classification", "objective: token-classification"))
    return place


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_run_learns_and_all_commands_know_it(name: str, tmp_path: Path) -> None:
    """A stock pipeline over the merged folder, and stock PEFT over the adapter, label as the last evaluation says."""
    place = place_of(tmp_path, name)
    run = place.train(*LEARN)
    before, *_, after = [record["figures"] for record in runs.records(run, "eval")]
    assert list(after) == ["F1", "precision", "recall", "accuracy"]
    assert after["F1"] > before["F1"]
    head = read_adapter(run / "last").head
    assert (head.kind, head.labels) == ("token", ("B-N", "B-T", "O"))
    merged = merge_adapter((run / "last").resolve(), run / "merged").out
    model = AutoModelForTokenClassification.from_pretrained(merged).eval()
    assert model.config.id2label == {0: "B-N", 1: "B-T", 2: "O"}
    tokenizer = AutoTokenizer.from_pretrained(merged)
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with_peft = PeftModel.from_pretrained(base, run / "last").eval()
    assert json.loads((run / "last" / "adapter_config.json").read_text())["task_type"] == "TOKEN_CLS"
    right = total = 0
    for row in tagged(9, seed=1):
        text = " ".join(row["tokens"])
        given = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            made = model(input_ids=given["input_ids"]).logits
            assert torch.allclose(with_peft(input_ids=given["input_ids"]).logits, made, atol=1e-4)
        entities = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])(text)
        at = 0
        for word, label in zip(row["tokens"], row["tags"], strict=True):
            first = next(e for e in entities if e["end"] > at)
            right, total = right + (first["entity"] == label), total + 1
            at += len(word) + 1
    assert right / total == pytest.approx(after["accuracy"])
    assert all(finding.holds for finding in verify_run(run, (run / "last").resolve()))
    data = str(tmp_path / "validation.jsonl")
    for target in (run / "last", merged):
        done = CliRunner().invoke(app, ["eval", str(target), "--data", data, "--json"])
        found = json.loads(done.stdout)
        assert (found["figures"], found["tokens"], found["samples"]) == (after, total, [])
    for command in ("check", "plan", "preview"):
        done = CliRunner().invoke(app, [command, str(tmp_path / "recipe.yaml")])
        assert done.exit_code == 0, done.output
    assert "label" in done.output


@pytest.mark.parametrize(
    "method",
    ["lora", "galore", *(pytest.param(name, marks=pytest.mark.all) for name in ("dora", "vera", "full", "relora"))],
)
def test_any_method_and_any_micro_batch(method: str, tmp_path: Path) -> None:
    """And resumed to the bit."""
    place = place_of(tmp_path)
    keys = (f"adapter.method={method}", "training.max_steps=4", "checkpoint.every=2", "checkpoint.keep=9")
    run = place.train(*keys)
    cut = runs.cut(run, 2, tmp_path / "cut")
    place.train(*keys, out="cut", resume="last")
    assert runs.differing(runs.tensors(run), runs.tensors(cut)) == []
    single = place.train(*keys, "training.micro_batch_size=1", out="single")
    losses = [[record["loss"] for record in runs.records(each)] for each in (run, single)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_the_same_labels(tmp_path: Path) -> None:
    place = place_of(tmp_path, n=9)
    keys = (*two_processes.KEYS, "evaluation.samples=0")
    one = place.train(*keys, out="one")
    two_processes.launch(place, "two", *keys)
    two = tmp_path / "two"
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-4
    for a, b in zip(runs.records(one, "eval"), runs.records(two, "eval"), strict=True):
        assert a["figures"] == pytest.approx(b["figures"])

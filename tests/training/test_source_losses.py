"""The training loss of each entry of data.train: parts of the step's loss, whatever the passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import classifiers
import embedders
import pytest
import runs
import tiny
import torch
from runs import Place

from lrft.data.collate import ENTRIES
from lrft.loading.from_recipe import objective_of
from lrft.loading.metrics import metrics_of
from lrft.objectives.sft import TokenLoss
from lrft.training.setup import load_inputs

STEPS = ("training.global_batch_size=3", "training.epochs=1", "training.warmup_steps=0")


def of_two(place: Place, a: list[Any], b: list[Any]) -> str:
    """data.train of two files."""
    return f"data.train=[{runs.write_rows(place.root / 'a.jsonl', a)}, {runs.write_rows(place.root / 'b.jsonl', b)}]"


def parts(record: dict[str, Any]) -> dict[str, float]:
    return {name: loss for name, loss in record.get("figures", {}).items() if name.startswith("loss of ")}


def check_parts(place: Place, run: Path, *keys: str) -> None:
    """The mean of the parts, each by what counts in it, is the loss of the step; some step has rows of one source."""
    recipe = place.recipe(*keys)
    inputs, objective = load_inputs(recipe, metrics_of(recipe, allow_code=False)), objective_of(recipe)
    seen = set()
    for record in runs.records(run):
        rows, ids = inputs.of_step(record["step"] - 1)
        own = {f"loss of {'ab'[k]}.jsonl": ids[rows.entries[ids] == k] for k in (0, 1)}
        counted = {name: objective.weight(rows, some) for name, some in own.items() if len(some)}
        found = parts(record)
        assert found.keys() == counted.keys()
        mean = sum(found[name] * n for name, n in counted.items()) / sum(counted.values())
        assert mean == pytest.approx(record["loss"], rel=1e-6)
        seen.add(len(found))
    assert seen == {1, 2}


def test_parts_add_up_to_the_loss_in_any_passes_and_are_reported(place: Place) -> None:
    weighted = [{**row, "weight": 1.0 + i % 3} for i, row in enumerate(runs.rows(10))]
    keys = (*STEPS, of_two(place, weighted, runs.rows(3, seed=3)))
    packed = place.train(*keys, "logging.report=[markdown, html]", out="packed")
    check_parts(place, packed, *keys)
    apart = place.train(*keys, "data.packing=false", "training.micro_batch_size=1", out="apart")
    for mine, theirs in zip(runs.records(packed), runs.records(apart), strict=True):
        assert parts(theirs) == pytest.approx(parts(mine), rel=1e-4)
    assert "loss of a.jsonl" in (packed / "log.txt").read_text()
    assert "| a.jsonl | 5 |" in " ".join((packed / "report.md").read_text().split("  "))
    assert "Training loss by source, smoothed" in (packed / "report.html").read_text()


def test_pairs_have_parts_and_one_source_has_none(place: Place) -> None:
    made = [row["messages"] for row in runs.rows(24)]
    some = [{"prompt": made[i][:1], "chosen": made[i][1:], "rejected": made[i + 13][1:]} for i in range(11)]
    keys = (*STEPS, "training.objective=simpo", "data.validation=none", of_two(place, some[:8], some[8:]))
    run = place.train(*keys, out="pairs")
    check_parts(place, run, *keys)
    single = place.train(*keys, "training.micro_batch_size=1", "data.packing=false", out="single")
    for mine, theirs in zip(runs.records(run), runs.records(single), strict=True):
        assert parts(theirs) == pytest.approx(parts(mine), rel=1e-4)
    alone = place.train("training.max_steps=1", out="alone")
    assert [parts(record) for record in runs.records(alone)] == [{}]


MADE = [row["messages"] for row in runs.rows(24)]
# {objective: rows that it takes}, eleven of each.
TAKEN: dict[str, list[dict[str, Any]]] = {
    "kto": [{"prompt": m[:1], "completion": m[1:], "label": i % 3 > 0} for i, m in enumerate(MADE[:11])],
    "reward": [{"prompt": m[:1], "chosen": m[1:], "rejected": MADE[i + 13][1:]} for i, m in enumerate(MADE[:11])],
    "classification": classifiers.rows(11),
    "token-classification": [
        {"tokens": row["text"].split(), "tags": [row["label"]] * len(row["text"].split())}
        for row in classifiers.rows(11)
    ],
    "embedding": embedders.rows(11, negatives=2),
    "distill": runs.rows(11),
}


@pytest.mark.parametrize("name", TAKEN)
def test_every_objective_has_parts(name: str, place: Place) -> None:
    """In one pass a step, and in a pass for each row; transformers' head of tokens has dropout, drawn for each pass."""
    options = {"teacher": str(place.root / "base"), "alpha": 0.3, "temperature": 2.0} if name == "distill" else {}
    chosen = f"training.objective={json.dumps({name: options})}"
    keys = (*STEPS, chosen, "data.validation=none", of_two(place, TAKEN[name][:8], TAKEN[name][8:]))
    run = place.train(*keys, "training.micro_batch_size=3", out="whole")
    check_parts(place, run, *keys)
    if name == "token-classification":
        return
    single = place.train(*keys, "training.micro_batch_size=1", "training.max_steps=1", out="single")
    assert parts(runs.records(single)[0]) == pytest.approx(parts(runs.records(run)[0]), rel=1e-4)


@pytest.mark.parametrize("direct", [True, False])
def test_parts_are_those_of_the_rows_alone(direct: bool) -> None:
    model, ids = tiny.make("llama"), tiny.tokens(3, 17)
    labels = ids.clone()
    labels[:, :5] = -100
    labels[1, 9] = -100
    losses = TokenLoss(model, direct=direct).train()
    losses.sources = ("one", "two", "none")
    losses({"input_ids": ids, "labels": labels, ENTRIES: torch.tensor([1, 0, 1])})
    alone = [model(input_ids=ids[i : i + 1], labels=labels[i : i + 1]).loss.item() for i in range(3)]
    counts = (labels[:, 1:] != -100).sum(1).tolist()
    sums = [n * loss for n, loss in zip(counts, alone, strict=True)]
    assert losses.sums["one"].tolist() == pytest.approx([sums[1], counts[1]], rel=1e-5)
    assert losses.sums["two"].tolist() == pytest.approx([sums[0] + sums[2], counts[0] + counts[2]], rel=1e-5)
    assert losses.sums["none"].tolist() == [0, 0]

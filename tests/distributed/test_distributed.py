"""Several processes train what one process trains, whether each holds the whole base or a part of it."""

from __future__ import annotations

import json

import pytest
import runs
from runs import Penalty, Place
from two_processes import KEYS, launch

pytestmark = pytest.mark.slow


@pytest.fixture
def nine(place: Place) -> Place:
    runs.write_rows(place.root / "train.jsonl", runs.rows(9))
    return place


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_two_processes_train_what_one_trains(nine: Place, strategy: str) -> None:
    """Trust 2, 4, 50."""
    asked = ("evaluation.samples=3", "evaluation.metrics=[exact_match, f1]")
    one = nine.train(*KEYS, *asked, out="one")
    two = launch(nine, "two", *asked, f"distributed.strategy={strategy}")
    assert f"strategy: {strategy}" in (two / "resolved.yaml").read_text()
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    for mine, theirs in zip(runs.records(one), runs.records(two), strict=True):
        assert (theirs["step"], theirs["tokens"], theirs["lr"]) == (mine["step"], mine["tokens"], mine["lr"])
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(mine["grad_norm"], rel=1e-4)
        assert theirs.get("gradient") == pytest.approx(mine.get("gradient"), rel=1e-4)
    for mine, theirs in zip(runs.records(one, "eval"), runs.records(two, "eval"), strict=True):
        assert theirs["tokens"] == mine["tokens"]  # no row is measured twice
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)
    first, again = (runs.records(run, "eval")[0] for run in (one, two))  # of the base, without rounding in training
    assert (again["samples"], again["figures"]) == (first["samples"], first["figures"])
    answered = [int((nine.root / f"two-answers-{rank}").read_text().split()[0]) for rank in (0, 1)]
    assert answered == ([5, 5] if strategy == "fsdp" else [3, 2])

    # Each row once per epoch, over both processes; both make the same number of passes.
    lines = [(nine.root / f"two-rows-{rank}").read_text().splitlines() for rank in (0, 1)]
    steps = [[json.loads(line) for line in found] for found in lines]
    assert [[len(step) for step in found] for found in steps] == [[2, 2, 1, 2, 2, 1]] * 2
    for epoch in (0, 1):
        ids = [i for found in steps for step in found[3 * epoch : 3 * epoch + 3] for micro in step for i in micro]
        assert sorted(ids) == list(range(9))
    assert steps[1][2] == [[]]  # the second process had no row there


@pytest.mark.parametrize(
    ("keys", "each"),
    [
        pytest.param(("distributed.strategy=ddp",), 3, marks=pytest.mark.all),
        (("distributed.strategy=fsdp",), 2),  # two nodes, each with the whole base
        (("distributed.strategy=fsdp", "training.gradient_checkpointing=light"), 3),
        pytest.param(("distributed.strategy=fsdp", "model.quantization=nf4"), 3, marks=pytest.mark.all),
        (("distributed.strategy=zero2", "training.gradient_checkpointing=full"), 3),
        pytest.param(("distributed.strategy=fsdp",), 3, marks=pytest.mark.all),
        pytest.param(("distributed.strategy=fsdp", "distributed.shard_over=all"), 2, marks=pytest.mark.all),
        pytest.param(("distributed.strategy=fsdp", "training.gradient_checkpointing=full"), 3, marks=pytest.mark.all),
        pytest.param(("distributed.strategy=fsdp", "model.quantization=int8"), 2, marks=pytest.mark.all),
        pytest.param(("distributed.strategy=fsdp", "model.quantization=fp8"), 3, marks=pytest.mark.all),
        pytest.param(("distributed.strategy=zero2", "model.quantization=nf4"), 3, marks=pytest.mark.all),
    ],
    ids=lambda value: "+".join(key.rsplit("=")[1] for key in value) if isinstance(value, tuple) else str(value),
)
def test_more_processes_and_nodes(nine: Place, keys: tuple[str, ...], each: int) -> None:
    same = [key for key in keys if key.startswith("model.")]
    one = nine.train(*KEYS, *same, "adapter.method=[pissa, dora]", out="one")
    more = launch(nine, "more", *keys, "adapter.method=[pissa, dora]", world=4 if each == 2 else 3, each=each)
    assert runs.distance(runs.tensors(one), runs.tensors(more), "adapter") < 1e-5
    assert runs.records(one, "eval")[-1]["loss"] == pytest.approx(runs.records(more, "eval")[-1]["loss"], rel=1e-5)


def test_streamed_rows_are_shared_by_two_processes(nine: Place) -> None:
    more = runs.write_rows(nine.root / "more.jsonl", runs.rows(3, seed=3))
    keys = ("data.streaming=true", "data.window=4", "training.max_steps=4", "~training.epochs")
    keys = (*keys, f"data.train=[{more}, {nine.root / 'train.jsonl'}]")
    one = nine.train(*KEYS, *keys, out="one")
    two = launch(nine, "two", *keys)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    told = [[(record["tokens"], record["epoch"]) for record in runs.records(run)] for run in (one, two)]
    assert told[0] == told[1]
    for mine, theirs in zip(runs.records(one), runs.records(two), strict=True):
        assert theirs["figures"] == pytest.approx(mine["figures"], rel=1e-5)  # the losses of the two files


def test_a_run_goes_on_with_another_number_of_processes(nine: Place) -> None:
    whole = nine.train(*KEYS, out="whole")
    cut = runs.cut(launch(nine, "two", "distributed.strategy=fsdp"), 2, nine.root / "cut")
    launch(nine, "cut", "distributed.strategy=ddp", resume="last", world=3)
    assert runs.distance(runs.tensors(whole), runs.tensors(cut), "adapter") < 1e-5


def test_zero2_resumes_exactly_and_others_go_on_with_its_checkpoints(nine: Place) -> None:
    """Several groups of rates and decays, and norms that are kept until a tensor is written to."""
    method, strategy = "adapter.method=[{lora+: {ratio: 4}}, dora]", "distributed.strategy=zero2"
    one = nine.train(*KEYS, method, out="one")
    two = launch(nine, "two", method, strategy)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    assert runs.distance(runs.tensors(one), runs.tensors(two), "optimizer") < 1e-4
    cut = runs.cut(two, 2, nine.root / "cut")
    launch(nine, "cut", method, strategy, resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(two)) == []
    whole = runs.cut(two, 2, nine.root / "whole")
    nine.train(*KEYS, method, out="whole", resume="last")
    assert runs.distance(runs.tensors(one), runs.tensors(whole), "adapter") < 1e-5


@pytest.mark.parametrize("strategy", ["fsdp", "zero2"])
def test_every_strategy_computes_in_the_recipes_precision(nine: Place, strategy: str) -> None:
    """In bf16 over weights of float32: what would be lost are not digits but the precision that was asked for."""
    keys = ("training.precision=bf16", "model.precision=float32")
    wide = nine.train(*KEYS, out="wide")
    one = launch(nine, "one", *keys, world=1)  # Accelerate allows one precision per process
    two = launch(nine, "two", *keys, f"distributed.strategy={strategy}")
    losses = [[record["loss"] for record in runs.records(run)] for run in (wide, one, two)]
    apart = [max(abs(a - b) for a, b in zip(losses[i], losses[1], strict=True)) for i in (0, 2)]
    assert apart[1] < apart[0] / 4


def test_two_processes_resume_and_add_a_term_once(nine: Place) -> None:
    """A loss term counts once, whatever the number of processes; a resume is exact here too."""
    with pytest.MonkeyPatch.context() as patch:
        runs.add_parts(patch, Penalty(0.5))
        one = nine.train(*KEYS, out="one")
    two = launch(nine, "two", penalty="0.5")
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    cut = runs.cut(two, 2, nine.root / "cut")
    launch(nine, "cut", resume="last", penalty="0.5")
    assert runs.differing(runs.tensors(cut), runs.tensors(two)) == []


@pytest.mark.parametrize(
    "method",
    [
        "{galore: {projection: randomized, every: 3}}",
        "{fira: {every: 3}}",
        "{frugal: {every: 3, density: 0.5, inactive: sgd}}",  # a sign would show the rounding of what is nearly zero
        "{flora: {every: 3}}",
        "lora, {fast-forward: {every: 2, after: 0}}",
    ],
)
def test_two_processes_take_the_steps_that_one_takes(nine: Place, method: str) -> None:
    """Projections, choices and decisions are the same on both; a resume in the middle of a period is exact."""
    keys = (f"adapter.method=[{method}]", "evaluation.samples=0")
    one = nine.train(*KEYS, *keys, out="one")
    two = launch(nine, "two", *keys)
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-3
    cut = runs.cut(two, 2, nine.root / "cut")
    launch(nine, "cut", *keys, resume="last")
    assert runs.differing(runs.tensors(cut), runs.tensors(two)) == []


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_processes_with_unequal_memory_agree_on_a_micro_batch(nine: Place, strategy: str) -> None:
    """What each would take alone differs; passes that do not match would wait for each other."""
    keys = ("training.micro_batch_size=auto", f"distributed.strategy={strategy}")
    one = nine.train(*KEYS, out="one")
    two = launch(nine, "two", *keys, short="1")
    assert runs.distance(runs.tensors(one), runs.tensors(two), "adapter") < 1e-5
    assert "micro_batch_size: 1" in (two / "resolved.yaml").read_text()

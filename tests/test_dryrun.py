"""`lrft train --dry-run` says what a run does: each row once, the real run's rows, and nothing is started."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import pytest
import runs
import test_distributed
from runs import Place

from lrft import base, dryrun, launch
from lrft.cli import run_command
from lrft.launch import Process
from lrft.setup import load_tokenizer, prepare_data

RANKS = re.compile(r"^rank (\d+)\b.*?step 1: (?:(\d+) rows? in (\d+) micro-batch(?:es)?: ([\d ]+)|no rows)", re.M)
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def said(place: Place, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["train", str(place.root / "recipe.yaml"), "--dry-run", *arguments]) == 0
    return capsys.readouterr().out


def first_rows(text: str) -> dict[int, list[int]]:
    """Row ids of the first step by rank, as they are printed."""
    unwrapped = re.sub(r"\n {11}", "   ", text)
    return {int(rank): [int(i) for i in ids.split()] for rank, _, _, ids in RANKS.findall(unwrapped)}


@pytest.mark.parametrize("devices", [1, 2, 3, 6])
def test_the_first_step_is_dealt_out_whole(place: Place, capsys: pytest.CaptureFixture[str], devices: int) -> None:
    text = said(place, capsys, "--devices", str(devices))
    found = first_rows(text)
    recipe = place.recipe()
    rows = prepare_data(recipe, place.root / "base", load_tokenizer(recipe, place.root / "base")).train
    assert list(found) == list(range(devices))
    ids = [i for mine in found.values() for i in mine]
    assert sorted(ids) == sorted(dryrun.schedule_of(recipe, rows).rows(0).tolist())
    assert text.count("no rows") == max(0, devices - 4)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_each_step_has_each_of_its_rows_once(place: Place, devices: int) -> None:
    recipe = place.recipe("training.epochs=2")
    rows = prepare_data(recipe, place.root / "base", load_tokenizer(recipe, place.root / "base")).train
    processes = [Process(rank, rank, devices, "here", "cpu", {}) for rank in range(devices)]
    steps = [
        [[i for one in dryrun.passes_of(recipe, rows, step, process) for i in one] for process in processes]
        for step in range(runs.STEPS)
    ]
    dealt = [[i for mine in step for i in mine] for step in steps]
    assert [len(ids) for ids in dealt] == [4, 4, 2] * 2
    for epoch in (dealt[:3], dealt[3:]):
        assert sorted(i for ids in epoch for i in ids) == list(range(10))


@pytest.mark.slow
def test_the_rows_are_those_that_two_real_processes_take(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_rows(place.root / "train.jsonl", runs.rows(9))
    text = said(place, capsys, "--devices", "2", *test_distributed.KEYS, f"output_dir={place.root / 'two'}")
    test_distributed.launch(place, "two")
    recipe = place.recipe(*test_distributed.KEYS)
    rows = prepare_data(recipe, place.root / "base", load_tokenizer(recipe, place.root / "base")).train
    for rank in (0, 1):
        lines = (place.root / f"two-rows-{rank}").read_text().splitlines()
        taken = [json.loads(line) for line in lines]
        process = Process(rank, rank, 2, "here", "cpu", {})
        assert [dryrun.passes_of(recipe, rows, step, process) for step in range(6)] == taken
        assert first_rows(text)[rank] == [i for micro in taken[0] for i in micro]
        assert f"{len(taken[0])} micro-batches" in text
    kept = runs.steps(place.root / "two")
    assert f"checkpoints after steps {' '.join(map(str, kept))}, and at each best" in text
    assert "6 steps of 4 rows" in text


@pytest.mark.parametrize(("validation", "every"), [("none", "none"), ("2", "2")])
def test_every_file_that_it_names_is_one_that_the_first_process_writes(
    place: Place, capsys: pytest.CaptureFixture[str], validation: str, every: str
) -> None:
    keys = (f"data.validation={validation}", f"checkpoint.every={every}", "checkpoint.keep=9")
    text = re.sub(r"\n {11}", " ", said(place, capsys, *keys))
    run = place.train(*keys)
    (named,) = re.findall(r"by rank 0 alone, to \S+: (.*?) checkpoints after", text)
    assert set(named.split()) == {path.name for path in run.iterdir() if path.is_file()} - {".lock"}
    assert f"checkpoints after steps {' '.join(map(str, runs.steps(run)))} by" in text


def test_nothing_is_loaded_started_or_written(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run has done this")

    monkeypatch.setattr(base, "load_model", never)
    monkeypatch.setattr(launch.subprocess, "Popen", never)
    before = sorted(place.root.iterdir())
    text = said(place, capsys, "--devices", "2")
    assert [path for path in sorted(place.root.iterdir()) if path not in before and path.name != "cache"] == []
    assert "no run was started" in text


def test_the_environment_is_that_of_the_launch(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(place, capsys, "--devices", "2")
    port = int(re.search(r"MASTER_PORT=(\d+)", text)[1])
    for rank in (0, 1):
        real = launch.surroundings(rank, 2, port, gpu=False)
        for name in {*LAUNCHER, "OMP_NUM_THREADS", "ACCELERATE_USE_CPU"}:
            assert f"{name}={real[name]}" in text
    assert f"rank 1     {socket.gethostname()}, local rank 1, cpu" in text
    assert "started by lrft" in text
    assert "WORLD_SIZE" not in said(place, capsys, "--devices", "1"), "one process needs no other's address"


def test_under_a_launcher_each_process_speaks_for_itself(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As srun starts them: the rows of both are those of `--devices 2`; what all share is said once."""
    wanted = first_rows(said(place, capsys, "--devices", "2"))
    before = dict(os.environ)
    texts = []
    for rank in ("0", "1"):
        for name, value in {"PROCID": rank, "LOCALID": "0", "NTASKS": "2", "JOB_ID": "77"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("MASTER_ADDR", "node-0")
        try:
            texts.append(said(place, capsys))
        finally:
            for name in set(os.environ) - set(before):
                del os.environ[name]
    assert first_rows(texts[0]) | first_rows(texts[1]) == wanted
    assert [text.count("dry run") for text in texts] == [1, 0]
    assert "MASTER_ADDR=node-0" in texts[0]
    assert "MASTER_PORT=20077" in texts[0]
    assert "started by a launcher" in texts[0]
    assert "RANK=1 LOCAL_RANK=0" in texts[1]


@pytest.mark.parametrize(
    ("gpus", "here", "planned"),
    [(0, "cpu", ["cpu", "cpu"]), (1, "cuda:1, which is not there: this process sees 1", ["cpu", "cpu"]),
     (2, "cuda:1", ["cuda:0", "cuda:1"])],
)  # fmt: skip
def test_each_process_has_the_gpu_of_its_local_rank(
    monkeypatch: pytest.MonkeyPatch, gpus: int, here: str, planned: list[str]
) -> None:
    monkeypatch.setattr(launch, "gpus", lambda: gpus)
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    process = launch.this_process()
    assert (process.rank, process.local_rank, process.world, process.device) == (5, 1, 8, here)
    assert [process.device for process in launch.planned(2, gpu=gpus >= 2)] == planned


def test_mistakes_are_those_of_a_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(place.root / "recipe.yaml")
    assert run_command(["train", recipe, "--dry-run", "--resume"]) == 2
    assert "exclude each other" in capsys.readouterr().err
    assert run_command(["train", recipe, "--dry-run", f"data.train={place.root / 'nowhere.jsonl'}"]) == 3
    place.train()
    assert run_command(["train", recipe, "--dry-run"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run_command(["train", recipe, "--dry-run", "--fresh"]) == 0
    assert len(list(Path(place.root).glob("run*"))) == 1, "nothing was moved aside"

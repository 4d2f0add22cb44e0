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
import torch
import two_processes
from runs import Place
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import PreTrainedModel

from lrft.cli.main import run_command
from lrft.distributed import fsdp, launch
from lrft.distributed.launch import Process
from lrft.loading.from_recipe import load_recipe_tokenizer, prepare_data
from lrft.model.load import load_model
from lrft.planning import dry_run
from lrft.utils import hardware

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
    rows = prepare_data(recipe, place.root / "base", load_recipe_tokenizer(recipe, place.root / "base")).train
    assert list(found) == list(range(devices))
    ids = [i for mine in found.values() for i in mine]
    assert sorted(ids) == sorted(dry_run.batch_schedule(recipe, rows).rows(0).tolist())
    assert text.count("no rows") == max(0, devices - 4)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_each_step_has_each_of_its_rows_once(place: Place, devices: int) -> None:
    recipe = place.recipe("training.epochs=2")
    rows = prepare_data(recipe, place.root / "base", load_recipe_tokenizer(recipe, place.root / "base")).train
    processes = [Process(rank, rank, devices, "here", "cpu", {}) for rank in range(devices)]
    steps = [
        [[i for one in dry_run.passes_of(recipe, rows, step, process) for i in one] for process in processes]
        for step in range(runs.STEPS)
    ]
    dealt = [[i for mine in step for i in mine] for step in steps]
    assert [len(ids) for ids in dealt] == [4, 4, 2] * 2
    for epoch in (dealt[:3], dealt[3:]):
        assert sorted(i for ids in epoch for i in ids) == list(range(10))


@pytest.mark.slow
def test_the_rows_are_those_that_two_real_processes_take(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    runs.write_rows(place.root / "train.jsonl", runs.rows(9))
    text = said(place, capsys, "--devices", "2", *two_processes.KEYS, f"output_dir={place.root / 'two'}")
    two_processes.launch(place, "two")
    recipe = place.recipe(*two_processes.KEYS)
    rows = prepare_data(recipe, place.root / "base", load_recipe_tokenizer(recipe, place.root / "base")).train
    for rank in (0, 1):
        lines = (place.root / f"two-rows-{rank}").read_text().splitlines()
        taken = [json.loads(line) for line in lines]
        process = Process(rank, rank, 2, "here", "cpu", {})
        assert [dry_run.passes_of(recipe, rows, step, process) for step in range(6)] == taken
        assert first_rows(text)[rank] == [i for micro in taken[0] for i in micro]
        assert f"{len(taken[0])} micro-batches" in text
    kept = runs.steps(place.root / "two")
    assert f"checkpoints after steps {' '.join(map(str, kept))}, and at each new best" in text
    assert "6 steps of 4 rows" in text


@pytest.mark.parametrize(("validation", "every"), [("none", "none"), ("2", "2")])
def test_every_file_that_it_names_is_one_that_the_first_process_writes(
    place: Place, capsys: pytest.CaptureFixture[str], validation: str, every: str
) -> None:
    keys = [f"data.validation={validation}", f"checkpoint.every={every}"]
    if every != "none":
        keys.append("checkpoint.keep=9")
    text = re.sub(r"\n {11}", " ", said(place, capsys, *keys))
    run = place.train(*keys)
    (named,) = re.findall(r"by rank 0 alone, to \S+: (.*?) checkpoints after", text)
    assert set(named.split()) == {path.name for path in run.iterdir() if path.is_file()} - {".lock"}
    assert f"checkpoints after steps {' '.join(map(str, runs.steps(run)))} by" in text


@pytest.mark.parametrize(
    ("over", "on_a_node", "mates"),
    [("node", 2, [{0, 1}, {0, 1}, {2, 3}, {2, 3}]), ("all", 2, [{0, 1, 2, 3}] * 4), ("node", 1, [{0, 1, 2, 3}] * 4)],
)
def test_the_ranks_with_a_copy_of_the_base_are_those_of_the_mesh(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    over: str,
    on_a_node: int,
    mates: list[set[int]],
) -> None:
    """What each of four processes says, and the group in which torch would gather."""
    keys = ("distributed.strategy=fsdp", f"distributed.shard_over={over}")
    for rank in range(4):
        node, local = divmod(rank, on_a_node)
        facts = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 4, "LOCAL_WORLD_SIZE": on_a_node}
        for name, value in facts.items():
            monkeypatch.setenv(name, str(value))
        text = re.sub(r"\n {11}", "   ", said(place, capsys, *keys))
        lowest, highest = re.search(rf"rank {rank} .*a copy of the base on ranks (\d) to (\d)", text).groups()
        assert set(range(int(lowest), int(highest) + 1)) == mates[rank]
        assert ("strategy" in text) == (rank == 0)
        distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        try:
            mesh = fsdp.mesh_over("cpu", 4, over)
            assert set(distributed.get_process_group_ranks(mesh.get_group(mesh.ndim - 1))) == mates[rank], node
        finally:
            distributed.destroy_process_group()


def test_the_strategy_is_that_of_a_run(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    divided = said(place, capsys, "--devices", "2", "distributed.strategy=fsdp")
    assert "fsdp: 2 processes share one sharded copy of the base" in divided
    whole = said(place, capsys, "--devices", "2", "distributed.strategy=ddp")
    assert "ddp: each process holds the whole base" in whole
    assert "a copy of the base on" not in whole
    auto = said(place, capsys, "--devices", "2")
    assert "ddp: each process holds the whole base, chosen by" in auto
    assert "fsdp: " not in said(place, capsys, "--devices", "1", "distributed.strategy=fsdp")


def test_auto_weighs_the_base_against_a_gpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    source = place.root / "base"
    weights = sum(p.numel() * 4 for p in load_model(source, dtype=torch.float32).parameters())
    process = Process(0, 0, 2, "here", "cuda:0", {"LOCAL_WORLD_SIZE": "2"})
    for memory, wanted in ((weights, 2), (int(weights / 0.71), 2), (int(weights / 0.69), 1)):
        monkeypatch.setattr(hardware, "gpu_memory", lambda device, m=memory: {"cuda": m}[device.type])
        assert dry_run.sharing(place.recipe("model.precision=float32"), source, process) == wanted
    monkeypatch.setattr(hardware, "gpu_memory", lambda device: weights)
    half = place.recipe("model.precision=bfloat16")
    assert dry_run.sharing(half, source, process) == 1


def test_nodes_with_unequal_numbers_are_refused(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 6, "LOCAL_WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    arguments = ["train", str(place.root / "recipe.yaml"), "--dry-run", "distributed.strategy=fsdp"]
    assert run_command(arguments) == 2
    assert "6 processes on nodes of 4 each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "tool"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP"), ("MEGATRON_LM", "Megatron-LM")]
)
@pytest.mark.parametrize("more", [["--dry-run"], []])
def test_what_accelerate_would_divide_is_refused_before_anything_is_loaded(
    place: Place,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tool: str,
    more: list[str],
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "True")
    monkeypatch.setattr(launch, "gpus", lambda: 1 / 0)
    keys = [f"model={place.root / 'nowhere'}"]
    assert run_command(["train", str(place.root / "recipe.yaml"), *more, *keys]) == 2
    text = capsys.readouterr().err
    assert f"accelerate's configuration enables {tool} (ACCELERATE_USE_{name})" in text
    assert "distributed.strategy: fsdp" in text
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "false")
    launch.refuse_foreign()


def test_nothing_is_loaded_started_or_written(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run has done this")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", never)
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
    [(0, "cpu", ["cpu", "cpu"]), (1, "cuda:1, which does not exist: this process sees 1", ["cpu", "cpu"]),
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
    assert "cannot be used together" in capsys.readouterr().err
    assert run_command(["train", recipe, "--dry-run", f"data.train={place.root / 'nowhere.jsonl'}"]) == 3
    place.train()
    assert run_command(["train", recipe, "--dry-run"]) == 2
    assert "already contains a run" in capsys.readouterr().err
    assert run_command(["train", recipe, "--dry-run", "--fresh"]) == 0
    assert len(list(Path(place.root).glob("run*"))) == 1, "nothing was moved aside"

"""Several processes by one command: they train what one trains, end as one, and leave nothing hanging."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
from runs import Place

import lrft
from lrft.cli.main import run_command
from lrft.distributed import launch

pytestmark = pytest.mark.slow
ROOT = Path(lrft.__file__).parents[1]
KEYS = ("training.micro_batch_size=1", "training.optimizer={adamw: {eps: 1e-3}}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("launch"), train_rows=9)


def start(place: Place, out: str, *more: str, devices: int = 2, **named: str) -> subprocess.Popen[str]:
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RANK"},
        **{"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        **named,
    }
    command = [sys.executable, "-m", "lrft", "train", str(place.root / "recipe.yaml"), f"--devices={devices}"]
    return subprocess.Popen(
        [*command, f"output_dir={place.root / out}", *KEYS, *more],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], seconds: float = 600) -> str:
    said, _ = process.communicate(timeout=seconds)
    return said


def after_step(place: Place, out: str, step: int) -> None:
    """Wait until that step is in the run's log."""
    path = place.root / out / "metrics.jsonl"
    for _ in range(12000):
        if path.exists() and len(path.read_text().splitlines()) >= step:
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


@pytest.mark.parametrize("devices", [2, pytest.param(3, marks=pytest.mark.all)])
def test_several_processes_train_what_one_trains(place: Place, devices: int) -> None:
    one = place.root / "one"
    if not one.exists():
        place.train(*KEYS, out="one")
    process = start(place, f"devices{devices}", devices=devices)
    said = ended(process)
    assert process.returncode == 0, said
    assert f"x {devices} processes" in said
    assert said.count("done ") == 1, "only one of them speaks"
    several = place.root / f"devices{devices}"
    assert runs.distance(runs.tensors(one), runs.tensors(several), "adapter") < 1e-5
    for mine, theirs in zip(runs.records(one), runs.records(several), strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-5)


@pytest.mark.all
def test_a_checkpoint_of_two_processes_goes_on_with_one_and_with_three(place: Place) -> None:
    two = place.root / "devices2"
    if not two.exists():
        first = start(place, "devices2")
        assert ended(first)
        assert first.returncode == 0
    process = start(place, "every", "checkpoint.every=2", "checkpoint.keep=9")
    assert ended(process)
    assert process.returncode == 0
    for devices in (1, 3):
        cut = runs.cut(place.root / "every", 2, place.root / f"cut{devices}")
        resumed = start(place, cut.name, "checkpoint.every=2", "checkpoint.keep=9", "--resume", devices=devices)
        said = ended(resumed)
        assert resumed.returncode == 0, said
        assert runs.distance(runs.tensors(two), runs.tensors(cut), "adapter") < 1e-5


@pytest.mark.all
def test_a_killed_process_brings_the_others_down_and_the_run_can_go_on(place: Place) -> None:
    process = start(place, "killed", "training.epochs=400", "checkpoint.every=2")
    after_step(place, "killed", 4)
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    said = ended(process)  # long before gloo would give up
    assert process.returncode not in (0, None)
    assert re.search(r"was killed by signal 9|is gone|Connection", said), said
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    again = start(place, "killed", "training.epochs=400", "checkpoint.every=2", "--resume")
    after_step(place, "killed", 8)
    again.send_signal(signal.SIGTERM)
    said = ended(again)
    assert again.returncode == 143, said
    assert "resumed from step-" in said


def children_of(process: subprocess.Popen[str]) -> list[int]:
    """Their numbers, in the order in which they were started."""
    command = ["ps", "-o", "pid=", "--ppid", str(process.pid)]
    return sorted(int(n) for n in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def runs_still(number: int) -> bool:
    """Whether a process goes on; one that has ended may stay in the list until somebody asks for its exit code."""
    status = Path(f"/proc/{number}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


@pytest.mark.all
def test_who_waits_for_a_process_that_stands_still_says_where_it_waits(place: Place) -> None:
    process = start(place, "quiet", "training.epochs=400", "checkpoint.every=none", LRFT_QUIET_SECONDS="4")
    after_step(place, "quiet", 3)
    second = children_of(process)[1]
    os.kill(second, signal.SIGSTOP)
    stacks = place.root / "quiet" / "quiet-0.txt"
    stacks.unlink(missing_ok=True)  # on a busy machine a process is quiet by itself now and then
    deadline = time.monotonic() + 600
    while not stacks.exists() or "Thread" not in stacks.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(second, signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert process.returncode == 130, said
    line = r"process 1 of 2 has made no progress for 4 s: step (\d+), (.*) \(stacks in .*quiet-0.txt\)"
    step, doing = re.findall(line, said)[-1]
    assert int(step) > 3
    assert "processes" in doing or "gradients at its end" in doing
    assert "train_step" in stacks.read_text()


@pytest.mark.all
def test_processes_whose_launcher_was_killed_save_and_leave(place: Place) -> None:
    process = start(place, "orphans", "training.epochs=400", "checkpoint.every=none")
    after_step(place, "orphans", 3)
    children = children_of(process)
    process.kill()
    ended(process)  # until nobody holds the other ends of its pipes
    deadline = time.monotonic() + 600
    while any(runs_still(child) for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(runs.steps(place.root / "orphans")) == 1


def test_ctrl_c_saves_once_and_ends_all(place: Place) -> None:
    process = start(place, "stopped", "training.epochs=400", "checkpoint.every=none")
    after_step(place, "stopped", 3)
    process.send_signal(signal.SIGINT)
    said = ended(process)
    assert process.returncode == 130, said
    assert "a checkpoint was saved" in said
    assert len(runs.steps(place.root / "stopped")) == 1


def test_a_mistake_is_told_once_and_keeps_its_exit_code(place: Place) -> None:
    process = start(place, "wrong", "adapter.target_modules=[q_porj]")
    said = ended(process)
    assert process.returncode == 2, said
    assert said.count("q_porj matches no module") == 1
    typo = start(place, "typo", "adapter.rnak=3")
    assert "Did you mean" in ended(typo)
    assert typo.returncode == 2


def test_the_rank_of_slurm_is_taken_over_where_nobody_else_has_spoken(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"PROCID": "5", "LOCALID": "1", "NTASKS": "8", "NNODES": "2", "JOB_ID": "12345"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.7")
    before = dict(os.environ)
    try:
        launch.adopt_slurm()
        assert {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")} == {
            "RANK": "5",
            "LOCAL_RANK": "1",
            "WORLD_SIZE": "8",
            "MASTER_ADDR": "10.0.0.7",
        }
        assert (os.environ["MASTER_PORT"], os.environ["LOCAL_WORLD_SIZE"]) == ("32345", "4")
        del os.environ["RANK"]
        os.environ["CUDA_VISIBLE_DEVICES"] = "1"
        launch.adopt_slurm()
        assert os.environ["LOCAL_RANK"] == "0", "a task that sees one GPU calls it 0"
        os.environ["RANK"] = "0"
        launch.adopt_slurm()
        assert os.environ["RANK"] == "0", "another launcher's word stands"
    finally:
        os.environ.clear()
        os.environ.update(before)


def test_devices_beside_a_launcher_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    assert run_command(["train", str(place.root / "recipe.yaml"), "--devices", "2"]) == 2

"""Ctrl-C and SIGTERM in the middle of a run, and a process that is simply killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import runs
from runs import At, Place

from lrft.cli.main import run_command
from lrft.training.signals import StopSignals

KEYS = ("adapter.dropout=0.2", "evaluation.every=2", "evaluation.at_start=true")


def command(place: Place, *arguments: str) -> int:
    return run_command(["train", str(place.root / "recipe.yaml"), *KEYS, *arguments])


@pytest.mark.parametrize("hook", ["before_step", "after_step"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_after_its_step(
    place: Place,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    hook: str,
    number: signal.Signals,
    code: int,
) -> None:
    before = [signal.getsignal(n) for n in StopSignals.WATCHED]
    # A signal during the step is seen at its end; one that comes later, at the end of the next.
    done = 3 if hook == "before_step" else 4
    with monkeypatch.context() as patch:
        runs.add_parts(patch, At(hook, 3, lambda run: os.kill(os.getpid(), number)))
        assert command(place) == code
    said = capsys.readouterr().err
    assert f"stopped by signal {int(number)} after step {done} of 6" in said
    assert "--resume" in said
    assert [signal.getsignal(n) for n in StopSignals.WATCHED] == before
    run = place.root / "run"
    assert runs.steps(run) == [2, done]
    assert command(place, "--resume") == 0
    whole = place.train(*KEYS, out="whole")
    assert runs.differing(runs.tensors(run), runs.tensors(whole)) == []
    assert runs.records(run) == runs.records(whole)
    assert runs.records(run, "eval") == runs.records(whole, "eval")


def test_a_signal_in_the_last_step_loses_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("before_step", 6, lambda run: os.kill(os.getpid(), signal.SIGTERM)))
        assert command(place) == 143
    assert command(place, "--resume") == 0
    assert (place.root / "run" / "report.md").is_file()
    whole = place.train(*KEYS, out="whole")
    assert runs.differing(runs.tensors(place.root / "run"), runs.tensors(whole)) == []


def test_a_second_signal_leaves_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(run: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        runs.add_parts(patch, At("before_step", 4, twice))
        assert command(place) == 143
    assert runs.steps(place.root / "run")[-1] == 2
    assert command(place, "--resume") == 0


# Ends as a power cut does, between the second checkpoint's last byte and its name.
KILLED = """
import os, signal, sys
from lrft.cli.main import main

def watch(event, arguments):
    if event == "os.rename" and os.path.basename(str(arguments[1])) == "step-000002":
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
main()
"""


def test_a_process_killed_while_it_saves(place: Place) -> None:
    """Nothing half written is ever used."""
    keys = (*KEYS, "checkpoint.every=1", "checkpoint.keep=9", "training.epochs=4")
    done = forked.run(KILLED, "train", str(place.root / "recipe.yaml"), *keys)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoints = place.root / "run" / "checkpoints"
    assert len(list(checkpoints.glob(".unfinished-step-000002*"))) == 1
    assert runs.steps(place.root / "run") == [1]
    assert not (place.root / "run" / "report.md").exists()
    run = place.train(*keys, resume="last")
    assert not list(checkpoints.glob(".unfinished*"))
    whole = place.train(*keys, out="whole")
    assert runs.differing(runs.tensors(run), runs.tensors(whole)) == []
    assert runs.records(run) == runs.records(whole)


def wait_for_a_step(run: Path, process: subprocess.Popen[str]) -> None:
    metrics = run / "metrics.jsonl"
    until = time.monotonic() + 600
    while process.poll() is None and not (metrics.exists() and '"kind": "step"' in metrics.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
def test_a_signal_to_the_command(place: Place) -> None:
    """The same from outside, through the real command line."""
    program = [sys.executable, "-c", "from lrft.cli.main import main; main()", "train", str(place.root / "recipe.yaml")]
    run = place.root / "run"
    with subprocess.Popen(
        [*program, *KEYS, "training.epochs=400"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        wait_for_a_step(run, process)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read()
    assert process.returncode == 143
    assert "Traceback" not in said
    assert "a checkpoint was saved" in said
    (last,) = (record["step"] for record in runs.records(run)[-1:])
    assert runs.steps(run)[-1] == last

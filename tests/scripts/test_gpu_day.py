"""scripts/gpu: what will run on the day of a GPU, rehearsed with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from gpu_day import speed
from gpu_day.day import Day

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def a_process_as_new() -> Iterator[None]:
    """Trainer leaves its precision to the process, and Accelerate allows one."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.mark.filterwarnings("ignore")  # of the profiler, of PEFT and of Trainer
def test_the_measurements_of_speed_rehearse(tmp_path: Path) -> None:
    day = Day(tmp_path / "day.json", dry=True, seconds=300)
    speed.run(day)
    found = json.loads((tmp_path / "day.json").read_text())
    assert not day.failed, found
    for way in ("lrft", "lrft, attention row by row", "peft, the same rows and loss"):
        assert all(mix["tokens/s"] > 0 for mix in found[way].values())
    assert found["peft and Trainer"]["steps"] == 4
    assert len(found["top 25"]) == 25


def test_parts_that_fail_or_come_too_late_leave_the_others(tmp_path: Path) -> None:
    day = Day(tmp_path / "day.json", dry=True, seconds=6)
    day.part("broken", 5, lambda end: 1 / 0)
    day.part("whole", 5, lambda end: "done")
    day.end = 0.0
    day.part("late", 5, lambda end: "done")
    found = json.loads((tmp_path / "day.json").read_text())
    assert day.failed
    assert "ZeroDivisionError" in found["broken"]["failed"]
    assert (found["whole"], found["late"]) == ("done", "no time was left")


@pytest.mark.all
def test_the_whole_command_rehearses(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "scripts/gpu"), str(tmp_path / "day.json"), "--dry"]
    subprocess.run(command, check=True, capture_output=True, env=environment)
    found = json.loads((tmp_path / "day.json").read_text())
    assert found["methods"]["compared"] == 4
    assert found["methods"]["failed"] == found["methods"]["differs"] == {}
    same = found["switches"]["plain"]["losses"]
    assert all(said["losses"] == pytest.approx(same, rel=1e-5) for said in found["switches"].values())
    assert found["gpu"] == "none" or torch.cuda.is_available()

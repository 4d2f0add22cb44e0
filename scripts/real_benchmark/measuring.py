"""`scripts/benchmark real measure`: what runs cost on this machine, in processor seconds, for plans. Some minutes."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lrft.quickstart.model import MODELS, fetch
from lrft.utils import files
from real_benchmark import running, stages
from real_benchmark.design import BASELINE, KEPT, MODEL, RATE, ROWS_A_STEP, WORK
from real_benchmark.plan import Stage
from real_benchmark.rows.all import TASKS
from real_benchmark.rows.task import TEST, VALIDATION

TASK, FEW, MORE = "sums", 3, 9
"""what is trained, and for how many steps, twice"""
GENERAL = 1000
"""tokens of the general text, about"""
FORWARD = 0.4
"""of a training step's time that a forward pass alone takes, about"""


def spent(command: Sequence[str]) -> float:
    """Processor seconds of a command. Raises CalledProcessError."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def trained(steps: int) -> tuple[Path, float]:
    """A run of LoRA, its folder and its seconds."""
    stage = Stage("measure", "final", TASK, 1, 1, (1,), steps)
    given, folder = stages.recipe(stage), WORK / "measure" / str(steps)
    keys = [
        f"data.train={given['data']['train']}",
        f"data.validation={given['data']['validation']}",
        *(f"training.{key}={value}" for key, value in given["training"].items()),
        f"training.learning_rate={RATE}",
        f"adapter.method={BASELINE}",
        f"evaluation.every={steps}",
        f"output_dir={folder}",
    ]
    return folder, spent(["-m", "lrft", "train", given["extends"], *keys, "--fresh", "--quiet"])


def measure() -> None:
    """Writes cost.json."""
    fetch(MODELS[MODEL])
    running.write_data()
    task = TASKS[TASK]
    imports = spent(["-c", "import lrft.cli.preloaded"])
    (_, few), (folder, more) = trained(FEW), trained(MORE)
    token = (more - few) / (MORE - FEW) / ROWS_A_STEP / task.tokens
    seen = FORWARD * token
    start = few - imports - FEW * ROWS_A_STEP * task.tokens * token - VALIDATION * task.tokens * seen
    merge = spent(["-m", "lrft", "merge", str(folder), "-o", str(WORK / "measure" / "merged"), "--json"]) - imports
    judge = spent(["-m", "real_benchmark.judge", str(folder), TASK]) - imports - TEST * task.tokens * seen
    asking = start + GENERAL * seen
    said = max(judge - asking, 0.0) / (TEST * task.most)
    figures = {
        "start": max(start, 0.0),
        "token": token,
        "seen": seen,
        "judge": asking,
        "said": said,
        "merge": merge,
    }
    files.write_json(KEPT / "cost.json", {name: round(value, 5) for name, value in figures.items()})

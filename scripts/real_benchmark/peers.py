"""`scripts/benchmark real peers`: lrft, PEFT with transformers' Trainer, and TRL, on the same rows of a real task.

For a seed all three begin with the same adapter and see the same rows in the same steps at the same rate; each trains
in a process of its own, whose time and peak memory are counted whole. The losses of the test rows are compared within
seeds. The peers run in the environment PEERS (default: .venv-bench, which scripts/bench makes).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.page_table import table

from lrft.compare.intervals import mean, spread
from lrft.quickstart.model import MODELS, fetch
from lrft.utils import files
from real_benchmark import running, stages
from real_benchmark.design import BASELINE, FINAL_SEEDS, KEPT, MODEL, RATE, STEPS, WORK
from real_benchmark.plan import Stage

TASK, TOOLS = "commands", ("lrft", "peft", "trl")
PLACE, FILE = WORK / "peers", KEPT / "peers.json"
PEERS = Path(os.environ.get("PEERS") or ".venv-bench/bin/python")
NAMES = {"lrft": "lrft", "peft": "PEFT, transformers' Trainer", "trl": "PEFT, TRL's SFTTrainer"}


def compare() -> int:
    """Everything that is not kept yet; then the page. Returns the exit code."""
    if not PEERS.exists():
        print(f"{PEERS} is missing: `scripts/bench steps` installs the peers, or set PEERS", file=sys.stderr)
        return 1
    from real_benchmark import page

    fetch(MODELS[MODEL])
    running.write_data()
    found = files.read_json(FILE) if FILE.is_file() else {}
    for seed in map(str, FINAL_SEEDS):
        for tool in TOOLS:
            if tool not in found.setdefault(seed, {}):
                print(f"{tool}, seed {seed}", flush=True)
                try:
                    found[seed][tool] = run(tool, int(seed))
                except (RuntimeError, subprocess.CalledProcessError) as error:
                    print(f"{tool}, seed {seed} failed: {error}", file=sys.stderr)
                    return 1
                files.write_json(FILE, found)
                page.write()
    return 0


def keys(seed: int) -> list[str]:
    """Arguments of `lrft train`, the recipe first."""
    stage = Stage("peers", "final", TASK, 1, 1, (seed,), STEPS[TASK])
    given = stages.recipe(stage)
    return [
        given["extends"],
        f"data.train={given['data']['train']}",
        f"data.validation={given['data']['validation']}",
        f"training.max_steps={given['training']['max_steps']}",
        f"training.learning_rate={RATE}",
        # Warm-up begins at a rate of 0 in transformers and above it in lrft: a constant rate is the same in both.
        "training.lr_scheduler=constant",
        "training.warmup_steps=0",
        f"training.seed={seed}",
        f"adapter.method={BASELINE}",
        "evaluation.every=none",
        f"output_dir={PLACE / f'lrft-{seed}'}",
    ]


def run(tool: str, seed: int) -> dict[str, float]:
    """Test loss of one tool and what its process took: {"loss", "wall", "cpu", "peak_gb"}."""
    job, out = PLACE / f"job-{seed}", PLACE / f"{tool}-{seed}.json"
    if not (job / "job.json").is_file():
        subprocess.run([sys.executable, "-m", "real_benchmark.peer_job", str(job), *keys(seed)], check=True)
    if tool == "lrft":
        took = watched([sys.executable, "-m", "lrft", "train", *keys(seed), "--fresh", "--quiet"])
        data = WORK / "data" / f"{TASK}-test.jsonl"
        asked = ["eval", str(PLACE / f"lrft-{seed}" / "last"), "--data", str(data), "--no-generate", "--json"]
        said = subprocess.run([sys.executable, "-m", "lrft", *asked], check=True, stdout=subprocess.PIPE, text=True)
        return {"loss": float(json.loads(said.stdout)["loss"]), **took}
    took = watched([str(PEERS), "-m", "real_benchmark.peer_trainer", tool, str(job), str(out)])
    # What the peer needs to measure its loss is not part of its training.
    answer = files.read_json(out)
    took = {**took, "wall": took["wall"] - answer["asking_wall"], "cpu": took["cpu"] - answer["asking_cpu"]}
    return {"loss": answer["loss"], **took}


def watched(command: list[str]) -> dict[str, float]:
    """Runs a command. Raises RuntimeError where it fails."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {' '.join(command)}")
    cpu = used.ru_utime + used.ru_stime
    return {"wall": time.monotonic() - began, "cpu": cpu, "peak_gb": used.ru_maxrss / 1024**2}


def section(found: Mapping[str, Mapping[str, Mapping[str, Any]]] | None) -> str:
    """Of the page. found: what is kept, by seed and tool."""
    head = ["tool", "test loss", "less lrft's, by seed", "CPU s of the process", "seconds", "peak GB"]
    whole = [seed for seed, tools in (found or {}).items() if all(tool in tools for tool in TOOLS)]
    rows = []
    for tool in TOOLS:
        if found is None or not whole:
            rows.append([NAMES[tool], "not run", *[""] * 4])
            continue
        those = [found[seed][tool] for seed in whole]
        apart = [found[seed][tool]["loss"] - found[seed]["lrft"]["loss"] for seed in whole]
        losses = [one["loss"] for one in those]
        shown = "" if tool == "lrft" else ", ".join(f"{each:+.5f}" for each in apart)
        costs = (f"{mean([one[key] for one in those]):.{digits}f}" for key, digits in COSTS)
        deviation = spread(losses)
        rows.append([NAMES[tool], f"{mean(losses):.4f}" + (f" ± {deviation:.4f}" if deviation else ""), shown, *costs])
    text = (
        f"## Other trainers on the same rows\n\n{BASELINE} of rank 8 on `{TASK}`, {STEPS[TASK]} steps at a constant "
        f"{RATE:g}: for a seed the same first values, the same rows in the same steps. Time and memory are those of "
        "the whole process, imports and loading included. `scripts/benchmark real peers`.\n\n"
    )
    return text + table(head, rows, 1)


COSTS = (("cpu", 0), ("wall", 0), ("peak_gb", 2))


def kept() -> dict[str, Any] | None:
    found: dict[str, Any] | None = files.read_json(FILE) if FILE.is_file() else None
    return found

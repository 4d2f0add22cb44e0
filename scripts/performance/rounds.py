"""Contestants by turns, several rounds, each time in a fresh process: what disturbs the machine disturbs them all."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from performance import processes
from performance.contestants import Contestant
from performance.job import Job
from performance.place import Place

Run = dict[str, Any]
SAID = 200  # characters of an error that are kept


@dataclass(frozen=True)
class Plan:
    """What is the same for all contestants of a section."""

    model: str
    rows: Path
    steps: int
    """optimiser steps that count, after one that does not"""
    rounds: int
    rank: int = 8
    seed: int = 0


def turns(names: Sequence[str], rounds: int) -> list[tuple[int, str]]:
    """(round, name) in the order of measuring: every round begins with another one."""
    return [(n, name) for n in range(rounds) for name in [*names[n % len(names) :], *names[: n % len(names)]]]


def measure(place: Place, contestants: Sequence[Contestant], plan: Plan) -> list[Run]:
    """One record per contestant and round; who fails is not asked again and is kept with the reason."""
    table = {entry.name: entry for entry in contestants}
    runs: list[Run] = []
    for number, name in turns(list(table), plan.rounds):
        if any(run["contestant"] == name and "error" in run for run in runs):
            continue
        run = one(place, table[name], plan) | {"contestant": name, "round": number}
        runs.append(run)
        print(f"round {number + 1}/{plan.rounds}  {name:<22} {told(run)}", file=sys.stderr, flush=True)
    return runs


def one(place: Place, entry: Contestant, plan: Plan) -> Run:
    """One contestant once, in a process of its own."""
    folder = place.work / "jobs" / re.sub(r"\W+", "-", entry.name)
    shutil.rmtree(folder, ignore_errors=True)
    job = Job(
        runner=entry.runner,
        model=str(place.model(plan.model)),
        rows=str(plan.rows),
        folder=str(folder),
        result=str(folder / "result.json"),
        steps=plan.steps + 1,
        rank=plan.rank,
        seed=plan.seed,
        options=entry.options,
    )
    path = job.write(folder / "job.json")
    before = os.getloadavg()[0]
    ended = processes.run([place.interpreter(entry.peer), "-m", "performance.worker", path], threads=place.threads)
    if ended.code:
        (folder / "error.txt").write_text(ended.error)
        return {"error": ended.reason()[:SAID], "output": str(folder / "error.txt")}
    return json.loads(Path(job.result).read_text()) | {"process": ended.measured(), "load_before": before}


def told(run: Run) -> str:
    if "error" in run:
        return f"failed: {run['error']}"
    walls = " ".join(f"{step['wall']:.2f}" for step in run["steps"])
    return f"{walls} s, {run['peak_mb']:,.0f} MB, first loss {run['losses'][0]:.5f}"


def counted(runs: Sequence[Run], name: str, what: str) -> list[float]:
    """`what` (wall or cpu) of every step of a contestant that counts, over all rounds."""
    return [step[what] for run in good(runs, name) for step in run["steps"][1:]]


def of_runs(runs: Sequence[Run], name: str, get: Callable[[Run], float]) -> list[float]:
    """One number per round of a contestant."""
    return [get(run) for run in good(runs, name)]


def good(runs: Sequence[Run], name: str) -> list[Run]:
    return [run for run in runs if run["contestant"] == name and "error" not in run]


def times(runs: Sequence[Run], order: Sequence[str]) -> dict[str, list[float]]:
    """CPU seconds of the steps that count, of everybody."""
    return {name: counted(runs, name, "cpu") for name in names(runs, order)}


def names(runs: Sequence[Run], order: Sequence[str] = ()) -> list[str]:
    """Every contestant that was measured at least once, in `order`."""
    found = {run["contestant"] for run in runs if "error" not in run}
    return [name for name in order if name in found]


def failures(runs: Sequence[Run]) -> dict[str, str]:
    return {run["contestant"]: run["error"] for run in runs if "error" in run}

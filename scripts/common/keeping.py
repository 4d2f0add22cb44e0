"""What the pages in docs keep of a comparison: its figures, its cost, the machine."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrft.utils import files

OF_COMPARISON = ("metric", "baseline", "budget", "seeds", "runs", "grid", "failed", "warnings")
OF_METHOD = ("run", "methods", "rank", "trained", "best", "values", "mean", "spread", "difference", "low", "high")

Facts = dict[str, Any]
SUBREAPER = 36
"""PR_SET_CHILD_SUBREAPER of prctl(2)"""


def of_comparison(compared: Facts, cost: Path) -> Facts:
    """compared: a compare.json. cost: what `counted` has written."""
    kept = {key: compared[key] for key in OF_COMPARISON}
    kept["methods"] = [{key: row[key] for key in OF_METHOD} for row in compared["methods"]]
    kept["cost"] = files.read_json(cost)
    kept["machine"] = machine(compared["methods"][0]["best_folder"])
    kept["date"] = datetime.date.today().isoformat()
    return kept


@contextmanager
def counted(path: Path) -> Iterator[None]:
    """Adds the seconds of what is done inside to those at `path`: a comparison that was broken off goes on."""
    adopt()
    before = children()
    wall, cpu = time.monotonic(), processor_seconds()
    try:
        yield
    finally:
        for left in children() - before:
            os.waitpid(left, 0)
        spent = {"wall_seconds": time.monotonic() - wall, "cpu_seconds": processor_seconds() - cpu}
        so_far = files.read_json(path) if path.is_file() else dict.fromkeys(spent, 0.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {key: round(so_far[key] + spent[key], 1) for key in spent})


def adopt() -> None:
    """Have the kernel hand to this process what its children leave behind when they end: runs of a comparison are forks
    of a server that `lrft compare` does not wait for, and whoever waits for a process is told what it has used."""
    ctypes.CDLL(None).prctl(SUBREAPER, 1)


def children() -> set[int]:
    return {int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine(folder: str) -> Facts:
    """What a run says of where it was made, and with what."""
    return machine_of(files.read_json(Path(folder) / "environment.json"))


def machine_of(said: Facts, *more: str) -> Facts:
    """The same of `lrft.runs.environment`, with the versions of `more` packages."""
    versions = {name: said["packages"][name] for name in ("lrft", "torch", "transformers", *more)}
    return {"cpu": said["cpu"], "threads": said["torch"]["threads"], "python": said["python"], **versions}


def keep(path: Path, section: str, facts: Facts) -> None:
    """Put facts into the file at `path`, beside those that it has of other sections, with today's date."""
    so_far = files.read_json(path) if path.is_file() else {}
    dated = {**facts, "date": datetime.date.today().isoformat()}
    files.write_text(path, json.dumps({**so_far, section: dated}, indent=1) + "\n")

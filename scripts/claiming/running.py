"""`lrft compare` of one claim, and what docs/claims keeps of it."""

from __future__ import annotations

import datetime
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from claiming.claim import Measure
from lrft import files

RECIPES, RUNS, KEPT = Path("recipes/claims"), Path("runs/claims"), Path("docs/claims")
OF_COMPARISON = ("metric", "baseline", "budget", "seeds", "runs", "grid", "failed", "warnings")
OF_METHOD = ("run", "methods", "rank", "trained", "best", "values", "mean", "spread", "difference", "low", "high")

Facts = dict[str, Any]


def kept_at(name: str) -> Path:
    return KEPT / f"{name}.json"


def kept() -> dict[str, Facts]:
    """What is kept of all claims that were tried, by name."""
    return {path.stem: files.read_json(path) for path in sorted(KEPT.glob("*.json"))}


def run(name: str, measures: Sequence[Measure]) -> Facts:
    """Train what is not trained yet, and return what is to be kept. Raises CalledProcessError when a command fails."""
    with counted(RUNS / name / "cost.json"):
        subprocess.run([sys.executable, "-m", "lrft", "compare", str(RECIPES / f"{name}.yaml")], check=True)
        compared = files.read_json(RUNS / name / "compare.json")
        measured = {measure.name: asked(compared, measure) for measure in measures}
    kept = {key: compared[key] for key in OF_COMPARISON}
    kept["methods"] = [{key: row[key] for key in OF_METHOD} for row in compared["methods"]]
    kept["measured"] = measured
    kept["cost"] = files.read_json(RUNS / name / "cost.json")
    kept["machine"] = machine(compared["methods"][0]["best_folder"])
    kept["date"] = datetime.date.today().isoformat()
    return kept


def asked(compared: Facts, measure: Measure) -> dict[str, dict[str, float]]:
    """A measure of every run at its best point, by run and seed."""
    folders = {row["run"]: row["folders"] for row in compared["methods"]}
    seeds = [str(seed) for seed in compared["seeds"]]
    return {
        run: {
            seed: measure.of(folder, theirs)
            for seed, folder, theirs in zip(seeds, those, folders[compared["baseline"]], strict=True)
        }
        for run, those in folders.items()
    }


@contextmanager
def counted(path: Path) -> Iterator[None]:
    """Adds the seconds of what is done inside to those at `path`: a comparison that was broken off goes on."""
    wall, cpu = time.monotonic(), processor_seconds()
    try:
        yield
    finally:
        spent = {"wall_seconds": time.monotonic() - wall, "cpu_seconds": processor_seconds() - cpu}
        before = files.read_json(path) if path.is_file() else dict.fromkeys(spent, 0.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {key: round(before[key] + spent[key], 1) for key in spent})


def processor_seconds() -> float:
    """Of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def machine(folder: str) -> Facts:
    """What a run says of where it was made, and with what."""
    said = files.read_json(Path(folder) / "environment.json")
    versions = {name: said["packages"][name] for name in ("lrft", "torch", "transformers")}
    return {"cpu": said["cpu"], "threads": said["torch"]["threads"], "python": said["python"], **versions}

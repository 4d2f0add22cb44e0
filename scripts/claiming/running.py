"""`lrft compare` of one claim, and what docs/claims.json keeps of it."""

from __future__ import annotations

import datetime
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from claiming import pairs
from lrft import files

RECIPES, RUNS = Path("recipes/claims"), Path("runs/claims")
OF_COMPARISON = ("metric", "baseline", "budget", "seeds", "runs", "grid", "failed", "warnings")
OF_METHOD = ("run", "methods", "rank", "trained", "best", "values", "mean", "spread", "difference", "low", "high")

Facts = dict[str, Any]


def run(name: str, *, digits: bool) -> Facts:
    """Train what is not trained yet, and return what is to be kept. Raises CalledProcessError when a command fails.

    digits: whether the best runs answer all prompts too.
    """
    with counted(RUNS / name / "cost.json"):
        subprocess.run([sys.executable, "-m", "lrft", "compare", str(RECIPES / f"{name}.yaml")], check=True)
        compared = files.read_json(RUNS / name / "compare.json")
        right = {
            row["run"]: {
                str(seed): share_of_digits(folder)
                for seed, folder in zip(compared["seeds"], row["folders"], strict=True)
            }
            for row in compared["methods"]
            if digits
        }
    kept = {key: compared[key] for key in OF_COMPARISON}
    kept["methods"] = [{key: row[key] for key in OF_METHOD} for row in compared["methods"]]
    kept["digits"] = right
    kept["cost"] = files.read_json(RUNS / name / "cost.json")
    kept["machine"] = machine(compared["methods"][0]["best_folder"])
    kept["date"] = datetime.date.today().isoformat()
    return kept


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


def share_of_digits(folder: str) -> float:
    """Share of the hex digits that a run's best checkpoint answers right, by greedy generation."""
    said = pairs.lrft(
        *("eval", folder, "--json", "--samples", str(pairs.NEW), "--max-new-tokens", "16", "--batch-size", "64")
    )
    return right_digits(json.loads(said)["samples"])


def right_digits(answers: Sequence[dict[str, str]]) -> float:
    """Share of the expected digits that stand in their place; what an answer lacks is wrong."""
    right = sum(a == b for one in answers for a, b in zip(one["expected"], one["answer"], strict=False))
    return right / sum(len(one["expected"]) for one in answers)

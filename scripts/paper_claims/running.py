"""`lrft compare` of one claim, and what docs/claims keeps of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from common import keeping
from common.keeping import Facts

from lrft.utils import files
from paper_claims.claim import Measure

RECIPES, RUNS, KEPT = Path("recipes/claims"), Path("runs/claims"), Path("docs/claims")


def kept_at(name: str) -> Path:
    return KEPT / f"{name}.json"


def kept() -> dict[str, Facts]:
    """What is kept of all claims that were tried, by name."""
    return {path.stem: files.read_json(path) for path in sorted(KEPT.glob("*.json"))}


def run(name: str, measures: Sequence[Measure]) -> Facts:
    """Train what is not trained yet, and return what is to be kept. Raises CalledProcessError when a command fails."""
    cost = RUNS / name / "cost.json"
    with keeping.counted(cost):
        subprocess.run([sys.executable, "-m", "lrft", "compare", str(RECIPES / f"{name}.yaml")], check=True)
        compared = files.read_json(RUNS / name / "compare.json")
        measured = {measure.name: asked(compared, measure) for measure in measures}
    return {**keeping.of_comparison(compared, cost), "measured": measured}


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

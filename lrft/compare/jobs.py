"""The run folders of a comparison: where each lies, what it is made by, and how far it is.

OUT/runs/NAME/learning_rate-0.001/seed-1/        the run, an ordinary one
OUT/runs/NAME/learning_rate-0.001/seed-1.yaml    its recipe
OUT/runs/NAME/learning_rate-0.001/seed-1.log     what its process printed
OUT/runs/NAME/learning_rate-0.001/seed-1.json    how its process ended, and what was measured of it
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lrft import recipe as recipes
from lrft.compare.config import Comparison
from lrft.compare.grid import Point, Rank, Variant
from lrft.errors import CheckFailed, NonFinite, UsageError
from lrft.recipe import Recipe
from lrft.utils import files

State = Literal["finished", "diverged", "interrupted", "failed", "new"]
NOT_FAILURES = (0, 130, 143, -2, -15)
"""exit codes: done, or stopped by a signal after a checkpoint, or before the run could save anything"""


@dataclass(frozen=True)
class Job:
    """One run folder: a run of the comparison at one point of the grid with one seed.

    recipe is its own; text: the keys of it that are given, as a file.
    """

    variant: Variant
    point: Point
    seed: int
    folder: Path
    recipe: Recipe
    text: str

    @property
    def label(self) -> str:
        """`mora learning_rate 0.001 seed 1`."""
        return " ".join(filter(None, (self.variant.name, self.point.label, f"seed {self.seed}")))

    def beside(self, ending: str) -> Path:
        """The file of this job with an ending such as `.log`."""
        return self.folder.with_name(self.folder.name + ending)

    @property
    def record(self) -> dict[str, Any]:
        """What is kept of the job; empty when nothing is, or nothing that can be read."""
        try:
            kept = json.loads(self.beside(".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def note(self, **facts: Any) -> None:
        """Keep `facts` beside the run, over what was kept of the same names."""
        files.write_json(self.beside(".json"), self.record | facts)

    @property
    def facts(self) -> dict[str, Any]:
        """run.json of the folder; empty when there is none that can be read."""
        try:
            found = files.read_json(self.folder / "run.json")
        except CheckFailed:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def state(self) -> State:
        ended = self.record.get("exit")
        failed = ended is not None and ended not in NOT_FAILURES
        if not (self.folder / "run.json").is_file():
            return "failed" if failed else "new"
        if (self.folder / "report.md").is_file():  # the last thing that a run writes
            return "finished"
        if ended == NonFinite.exit_code:
            return "diverged"  # it would do so again
        return "failed" if failed else "interrupted"

    @property
    def arguments(self) -> list[str]:
        """Arguments of `lrft` that begin this run or resume it."""
        resume = ["--resume=last"] if (self.folder / "run.json").is_file() else []
        return ["train", str(self.beside(".yaml")), *resume, "--quiet"]


def make_jobs(comparison: Comparison, ranks: Sequence[Rank]) -> list[Job]:
    """Every run folder, seed by seed, so that a comparison that is broken off has whole seeds.

    ranks: for each point of each variant in turn the rank that the budget chose and its word, or None.
    """
    places = [(variant, point) for variant in comparison.variants for point in variant.points]
    made = []
    for seed in comparison.seeds:
        for (variant, point), rank in zip(places, ranks, strict=True):
            folder = comparison.output / "runs" / variant.name / point.folder / f"seed-{seed}"
            made.append(Job(variant, point, seed, folder, *variant.recipe(point, seed=seed, output=folder, rank=rank)))
    return made


def refuse_other_recipes(jobs: Sequence[Job]) -> None:
    """Raises UsageError when a run was made by another recipe than the one that is wanted now."""
    for job in jobs:
        copy = job.folder / "recipe.yaml"
        if (job.folder / "run.json").is_file() and copy.is_file():
            changed = recipes.differences(recipes.load(copy), job.recipe)
            if changed:
                key, before, now = changed[0]
                more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
                raise UsageError(
                    f"{job.folder} was trained with another recipe: {key} was {before}, is {now} now{more}",
                    "Choose another output_dir, or move that folder.",
                )


def write_recipe(job: Job) -> None:
    """The job's recipe as a file that `lrft train` takes."""
    path = job.beside(".yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, job.text)


def last_words(log: Path, lines: int = 2) -> str:
    """The last lines that a process printed, as one."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    said = [line.strip() for line in text.splitlines() if line.strip()]
    return "   ".join(said[-lines:])

"""The comparison file of a stage, made of the design and of what the stages before have found. Halving is here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lrft.utils import files
from real_benchmark import plan
from real_benchmark.design import BASELINE, KEPT, NEAR, OPTIONS, RECIPE, WIDE, WORK, Tier, around, middle
from real_benchmark.plan import Stage, survivors
from real_benchmark.rows.all import TASKS

Facts = Mapping[str, Any]
Rates = dict[str, list[float]]
"""learning rates to try, by method, the baseline first"""
RATE = "training.learning_rate"


@dataclass(frozen=True)
class Part:
    """One comparison that can be run. group: a tier or `claims`. made: the file as data; raises LookupError where it
    builds on what has not been run."""

    group: str
    stage: Stage
    made: Callable[[], dict[str, Any]]
    recipe: Path = RECIPE

    @property
    def folder(self) -> Path:
        return folder(self.group, self.stage.name)

    @property
    def kept(self) -> Facts | None:
        return kept(self.group, self.stage.name)

    def write(self) -> Path:
        """The comparison file. JSON is YAML."""
        path = WORK / self.group / f"{self.stage.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(self.made(), indent=1) + "\n")
        return path


def parts(tier: Tier) -> list[Part]:
    return [Part(tier.name, stage, partial(comparison, tier, stage), tier.recipe) for stage in plan.stages(tier)]


def kept(tier: str, stage: str) -> Facts | None:
    """What is kept of a finished stage."""
    path = KEPT / tier / f"{stage}.json"
    found: Facts | None = files.read_json(path) if path.is_file() else None
    return found


def needed(tier: Tier, stage: Stage) -> Facts | None:
    """What a stage builds on. Raises LookupError where that has not been run."""
    before = {
        "screen": None,
        "narrow": "screen",
        "rates": "narrow" if tier.screens else None,
        "final": f"rates-{stage.task}",
    }[stage.kind]
    if before is None:
        return None
    found = kept(tier.name, before)
    if found is None:
        raise LookupError(before)
    return found


def rates(tier: Tier, stage: Stage) -> Rates:
    """What a stage tries."""
    found = needed(tier, stage)
    if found is None:
        return {method: around(middle(method, tier.rate), WIDE) for method in (BASELINE, *tier.methods)}
    if stage.kind == "narrow":
        return {method: best_rates(found, method)[:2] for method in best(found, survivors(tier))}
    if stage.kind == "rates":
        return {method: around(best_rates(found, method)[0], NEAR) for method in best(found, tier.finalists)}
    return {method: best_rates(found, method)[:1] for method in best(found, len(found["methods"]))}


def best(found: Facts, most: int) -> list[str]:
    """The baseline, and the methods with the lowest validation loss, at most so many. Failed ones are out.

    Raises ValueError where the baseline itself has no result.
    """
    done = [row for row in found["methods"] if row["mean"] is not None]
    if BASELINE not in {row["run"] for row in done}:
        raise ValueError(f"{BASELINE} has no result in {found['comparison']}")
    others = sorted((row for row in done if row["run"] != BASELINE), key=lambda row: (row["mean"], row["run"]))
    return [BASELINE, *(row["run"] for row in others[:most])]


def best_rates(found: Facts, method: str) -> list[float]:
    """The rates of a method that gave a result, the best first."""
    tried = [point for point in found["grid"] if point["run"] == method and point["mean"] is not None]
    return [point["point"][RATE] for point in sorted(tried, key=lambda point: (point["mean"], point["point"][RATE]))]


def rows_of(stage: Stage) -> tuple[Path, Path]:
    """Files with the rows that a stage trains on and that its loss is of."""
    data = WORK / "data"
    if stage.kind == "final":  # the loss that counts is that of the test rows, measured afterwards
        return data / f"{stage.task}-final-train.jsonl", data / f"{stage.task}-validation.jsonl"
    return data / f"{stage.task}-train.jsonl", data / f"{stage.task}-validation.jsonl"


def recipe(stage: Stage, shared: Path = RECIPE) -> dict[str, Any]:
    """The recipe that all runs of a stage have in common, over the file `shared`."""
    train, validation = rows_of(stage)
    return {
        "extends": str(shared.resolve()),
        "data": {"train": str(train), "validation": str(validation)},
        "training": {"max_steps": stage.steps, "warmup_steps": max(1, stage.steps // 10)},
        "evaluation": {"every": stage.steps, "max_new_tokens": TASKS[stage.task].most},
    }


def run_keys(method: str, tried: Sequence[float]) -> dict[str, Any]:
    """The keys of one run, with rates of its own."""
    options = OPTIONS.get(method)
    # A preset is a name that stands for several methods: only as a name alone is it expanded.
    named: Any = {method: options} if options else method
    return {"adapter.method": named, RATE: list(tried)}


def comparison(tier: Tier, stage: Stage) -> dict[str, Any]:
    """The file of a tier's stage as data."""
    tried = rates(tier, stage)
    return {
        "recipe": recipe(stage, tier.recipe),
        "runs": {method: run_keys(method, rates) for method, rates in tried.items()},
        "grid": {RATE: tried[BASELINE]},
        "seeds": list(stage.seeds),
        "baseline": BASELINE,
        "output_dir": str(folder(tier.name, stage.name)),
    }


def folder(tier: str, stage: str) -> Path:
    return WORK / tier / stage

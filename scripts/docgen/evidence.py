"""lrft/compare/evidence.json: what benchmark, performance and claims say of each method beside LoRA."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from method_benchmark.files import ENDINGS
from method_benchmark.tasks import TASKS
from real_benchmark import results

from lrft.utils import files

FORGETTING = "kept-knowledge"
"""the claim that measures the rise of general text's loss"""


def text(root: Path) -> str:
    """The file's text. Figures are relative to LoRA's in the same table: another machine made it again for each."""
    docs = root / "docs"
    found: dict[str, dict[str, Any]] = {}
    for ending in ENDINGS:
        for task in TASKS:
            if (path := docs / "benchmark" / f"{task}{ending}.json").is_file():
                add_losses(found, task, files.read_json(path))
    add_real_losses(found)
    add_costs(found, files.read_json(docs / "performance.json")["methods"])
    add_forgetting(found, files.read_json(docs / "claims" / f"{FORGETTING}.json"))
    return json.dumps(dict(sorted(found.items())), indent=1) + "\n"


def add_losses(found: dict[str, dict[str, Any]], task: str, facts: dict[str, Any]) -> None:
    """The loss of each seed over LoRA's of the same seed, less 1; and the trainable parameters over LoRA's."""
    (base,) = (row for row in facts["methods"] if row["run"] == facts["baseline"])
    for row in facts["methods"]:
        if row["mean"] is None:
            continue
        entry = found.setdefault(row["run"], {"loss": {}})
        entry["method"] = row["methods"]
        entry["parameters"] = round(row["trained"] / base["trained"], 4)
        entry["loss"].setdefault(
            task, [round(row["values"][seed] / base["values"][seed] - 1, 4) for seed in base["values"]]
        )


def add_real_losses(found: dict[str, dict[str, Any]]) -> None:
    """The same of the test rows on the real model, of the largest tier that was run: `real`, by task."""
    tier = results.best_tier()
    for task, facts in ({} if tier is None else results.finals(tier)).items():
        rows = {row["run"]: row for row in facts["methods"]}
        losses = results.figures(facts, "loss")
        base, size = losses[facts["baseline"]], rows[facts["baseline"]]["trained"]
        for run, those in losses.items():
            entry = found.setdefault(run, {"loss": {}, "method": rows[run]["methods"]})
            entry.setdefault("parameters", round(rows[run]["trained"] / size, 4))
            entry.setdefault("real", {})[task] = [round(a / b - 1, 4) for a, b in zip(those, base, strict=True)]


def add_costs(found: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """The median step and the largest memory over LoRA's, from the first round."""
    measured = {run["contestant"]: run for run in facts["runs"] if "steps" in run and run["round"] == 0}
    seconds = {name: statistics.median(step["wall"] for step in run["steps"][1:]) for name, run in measured.items()}
    for name, run in measured.items():
        entry = found.setdefault(name, {"loss": {}, "method": [name]})
        entry["step"] = round(seconds[name] / seconds["lora"], 3)
        entry["memory"] = round(run["peak_mb"] / measured["lora"]["peak_mb"], 3)


def add_forgetting(found: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    rises = {name: statistics.fmean(values.values()) for name, values in facts["measured"]["rise"].items()}
    for name, rise in rises.items():
        found.setdefault(name, {"loss": {}, "method": [name]})["forgotten"] = round(rise / rises["lora"], 3)

"""The comparisons in recipes/benchmark, one for each task: every method that there is, made from the catalogue.

Learning rates are searched on the first task. The others take what was best there, from docs/benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarking.tasks import TASKS
from lrft import catalog, files

FOLDER, KEPT = Path("recipes/benchmark"), Path("docs/benchmark")
FIRST = next(iter(TASKS))
GRID = (1e-3, 3e-3, 1e-2)
"""learning rates that a method gets unless RATES names others"""
HIGHER, HIGHEST = (3e-3, 1e-2, 3e-2), (0.03, 0.1, 0.3)
LOWER = (3e-4, 1e-3, 3e-3)
RATES: dict[str, tuple[float, ...]] = {
    # Little is trained, or it is damped by a small factor, or masked.
    **dict.fromkeys(("aflora", "dcft", "delora", "edora", "flora-batched", "lora-xs", "lori", "lorma"), HIGHER),
    **dict.fromkeys(("lotr", "nola", "roselora"), HIGHER),
    **dict.fromkeys(("c3a", "fourierft"), HIGHEST),
    "vera": (1e-2, 3e-2, 0.1),
    # The weights themselves are trained, or a step goes further than LoRA's.
    **dict.fromkeys(("full", "frugal", "flora", "corda", "lora+", "lora-ga", "remora"), LOWER),
}
OPTIONS: dict[str, Any] = {
    # Sizes that no rank sets: about as many numbers as the baseline where that can be paid for.
    "fourierft": {"frequencies": 4800},
    "dcft": {"kernel": 64},
    "nola": {"basis": 64},
    "lora-ensemble": {"members": 2},
    # At most so many evaluations at each of its attempts: without a limit they cost more than the training.
    "fast-forward": {"most": 8},
}
OUTSIDE: dict[str, str] = {}
"""methods that have no row, and why"""


def runs(task: str) -> Iterator[tuple[str, str]]:
    """(name, what stands behind it) of each run: the baseline first, then by name."""
    best = {} if task == FIRST else best_rates()
    names = sorted({*catalog.methods(), *catalog.PRESETS} - {*OUTSIDE, catalog.DEFAULT_METHOD})
    for name in (catalog.DEFAULT_METHOD, *names):
        keys = []
        if name in OPTIONS:
            given = ", ".join(f"{key}: {value}" for key, value in OPTIONS[name].items())
            keys.append(f"adapter.method: {{{name}: {{{given}}}}}")
        if name in best:
            keys.append(f"training.learning_rate: {best[name]}")
        elif name in RATES and task == FIRST:
            keys.append(f"training.learning_rate: [{', '.join(map(str, RATES[name]))}]")
        yield name, f" {{{', '.join(keys)}}}" if keys else ""


def best_rates() -> dict[str, float]:
    """By run, on the first task; nothing for one that has not been tried there."""
    kept = files.read_json(KEPT / f"{FIRST}.json")
    return {row["run"]: row["best"]["training.learning_rate"] for row in kept["methods"] if row["best"]}


def text(task: str) -> str:
    """The comparison of one task."""
    grid = ["grid:", f"  training.learning_rate: [{', '.join(map(str, GRID))}]"] if task == FIRST else []
    lines = [
        f"# The {task} task of docs/benchmark.md: every method that there is.",
        "# `scripts/benchmark files` writes this file.",
        "recipe:",
        "  extends: common.yaml",
        f"  data: {{train: runs/benchmark/{task}.jsonl, validation: runs/benchmark/{task}-validation.jsonl}}",
        "runs:",
        *(f"  {name}:{keys}" for name, keys in runs(task)),
        *grid,
        "seeds: [1]",
        f"output_dir: runs/benchmark/{task}",
    ]
    return "\n".join(lines) + "\n"


def write(tasks: Iterable[str] = TASKS) -> None:
    for task in tasks:
        (FOLDER / f"{task}.yaml").write_text(text(task), encoding="utf-8")

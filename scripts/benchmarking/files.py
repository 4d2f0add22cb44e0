"""The comparisons in recipes/benchmark, one for each task: every method that there is, made from the catalogue."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarking.tasks import TASKS
from lrft import catalog

FOLDER = Path("recipes/benchmark")
GRID = (1e-3, 3e-3, 1e-2)
"""learning rates that a method gets unless RATES names others"""
HIGHER = (3e-3, 1e-2, 3e-2)
LOWER = (3e-4, 1e-3, 3e-3)
RATES: dict[str, tuple[float, ...]] = {
    # Little is trained, or it is damped by a small factor.
    **dict.fromkeys(("vera", "lora-xs", "edora", "nola", "lotr", "dcft", "c3a", "delora", "randlora"), HIGHER),
    "fourierft": (0.1, 0.3, 1.0),
    **dict.fromkeys(("aflora", "lorma", "flora-batched"), HIGHER),
    # The weights themselves are trained, or a step goes as far as theirs would.
    **dict.fromkeys(("full", "galore", "fira", "frugal", "flora", "dct-adamw", "lora-pro"), LOWER),
}  # fmt: skip
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


def runs() -> Iterator[tuple[str, str]]:
    """(name, what stands behind it) of each run: the baseline first, then by name."""
    names = sorted({*catalog.methods(), *catalog.PRESETS} - {*OUTSIDE, catalog.DEFAULT_METHOD})
    for name in (catalog.DEFAULT_METHOD, *names):
        keys = []
        if name in OPTIONS:
            given = ", ".join(f"{key}: {value}" for key, value in OPTIONS[name].items())
            keys.append(f"adapter.method: {{{name}: {{{given}}}}}")
        if name in RATES:
            keys.append(f"training.learning_rate: [{', '.join(map(str, RATES[name]))}]")
        yield name, f" {{{', '.join(keys)}}}" if keys else ""


def text(task: str) -> str:
    """The comparison of one task."""
    lines = [
        f"# The {task} task of docs/benchmark.md: every method that there is.",
        "# `scripts/benchmark files` writes this file.",
        "recipe:",
        "  extends: common.yaml",
        f"  data: {{train: runs/benchmark/{task}.jsonl, validation: runs/benchmark/{task}-validation.jsonl}}",
        "runs:",
        *(f"  {name}:{keys}" for name, keys in runs()),
        "grid:",
        f"  training.learning_rate: [{', '.join(map(str, GRID))}]",
        "seeds: [1]",
        f"output_dir: runs/benchmark/{task}",
    ]
    return "\n".join(lines) + "\n"


def write() -> None:
    for task in TASKS:
        (FOLDER / f"{task}.yaml").write_text(text(task), encoding="utf-8")

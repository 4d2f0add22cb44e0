"""The measured tables in docs/adapters.md, from docs/adapters.json: steps of experts, and errors of conversions."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from common.page_table import table

from lrft.utils import files

Facts = dict[str, Any]


def kept(root: Path) -> Facts:
    found: Facts = files.read_json(root / "docs" / "adapters.json")
    return found


def experts(facts: Facts) -> str:
    """Of `scripts/expert_speed.py`: a line for each model and system."""
    head = ["model", "system", "CPU seconds a step", "wall seconds a step", "CPU time over lrft's"]
    lines = []
    for name, found in facts["models"].items():
        ours = found["seconds"]["lrft"]["cpu"]
        about = f"{name}: {found['parameters'] / 1e6:.0f} M, {found['trained'] / 1e6:.2f} M trained"
        for system, seconds in found["seconds"].items():
            over = statistics.median(its / own for its, own in zip(seconds["cpu"], ours, strict=True))
            lines.append([about, system, spread(seconds["cpu"]), spread(seconds["wall"]), f"{over:.2f}"])
            about = ""
    apart = max(
        abs(its - own)
        for found in facts["models"].values()
        for losses in found["losses"].values()
        for its, own in zip(losses, found["losses"]["lrft"], strict=True)
    )
    steps = len(next(iter(facts["models"].values()))["losses"]["lrft"])
    said = (
        f"LoRA of rank {facts['rank']} on all experts, {facts['tokens']} tokens a step, {facts['rounds']} steps of "
        "each system by turns in one process after one that does not count: median (min..max); the last column is "
        "the median of the ratios of one turn. Other work was on the machine, so go by CPU seconds. The systems "
        f"have the same first values, and their losses differ by at most {apart:.1e} in {steps} steps."
    )
    return f"{said}\n\n{table(head, lines, words=2)}\n{foot(facts)}"


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}..{max(values):.3f})"


def foot(facts: Facts) -> str:
    """Where and when it was measured."""
    machine = dict(facts["machine"])
    where = f"{machine.pop('cpu')}, {machine.pop('threads')} thread"
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    return f"<sub>{facts['date']}, {where}; {versions}</sub>"


def conversions(facts: Facts) -> str:
    """Of `scripts/conversion_errors.py`: a line for each method and way to cut."""
    head = ["method", "trained", "cut to", "ranks", "a layer's error: median", "largest", "logits", "same token"]
    lines = []
    for name, found in facts["methods"].items():
        about = [name if found["rank"] is None else f"{name}, rank {found['rank']}", f"{found['trained']:,}"]
        for how, cut in found["converted"].items():
            low, high = cut["ranks"]
            errors = [f"{cut[key]:.1%}" for key in ("median", "largest", "logits", "same token")]
            lines.append([*about, how, str(low) if low == high else f"{low} to {high}", *errors])
            about = ["", ""]
    said = (
        f"{facts['model']}, adapters on all linear layers of blocks {', '.join(map(str, facts['blocks']))}, "
        f"{facts['steps']} steps of {facts['rows']} rows at each method's own learning rate. A layer's error: the "
        "norm of what is cut off, over the norm of the update. Logits: the mean difference between adapter and LoRA "
        f"over the mean change that the adapter makes, on {facts['held out']} held-out rows; the last column is the "
        "share of their places with the same most likely token."
    )
    return f"{said}\n\n{table(head, lines, words=4)}\n{foot(facts)}"

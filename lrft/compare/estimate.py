"""Listing of a comparison's runs and an estimate of its duration."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from lrft.compare.budget import Choice
from lrft.compare.config import Comparison
from lrft.compare.jobs import Job
from lrft.loading.from_recipe import find_base, load_data
from lrft.loading.others import locate_others
from lrft.planning.plan import make_plan
from lrft.utils.text import Row, count, duration


def plan_rows(comparison: Comparison, jobs: Sequence[Job], choices: Sequence[Choice]) -> list[Row]:
    """The runs with ranks and trainable parameters, for the terminal."""
    seeds = count(len(comparison.seeds), "seed")
    lines = []
    left = list(choices)
    for variant in comparison.variants:
        own, left = left[: len(variant.points)], left[len(variant.points) :]
        # Most grids change nothing about the adapters: their points are then one line.
        for choice in dict.fromkeys(own):
            lines.append(rank_line(comparison, variant.name, choice))
    return [
        ("compare", [f"{comparison.path}   {count(len(jobs), 'run')}: {_count(comparison)} x {seeds}"]),
        ("ranks", [f"budget: {comparison.budget}, baseline {comparison.baseline}", *lines]),
    ]


def _count(comparison: Comparison) -> str:
    points = sum(len(variant.points) for variant in comparison.variants)
    return f"{count(len(comparison.variants), 'method')} at {count(points, 'point')}"


def rank_line(comparison: Comparison, name: str, choice: Choice) -> str:
    """`mora   rank 8   2,896 trainable parameters, -2.7% (chosen)`."""
    more = "" if name == comparison.baseline else f", {choice.deviation:+.1%}"
    note = f" ({choice.note})" if choice.note else ""
    own = f", {choice.beside:,} of them beside the adapters" if choice.beside else ""
    return f"{name:<14} rank {choice.rank:<5} {choice.trained:>13,} trainable parameters{more}{own}{note}"


def list_rows(jobs: Sequence[Job]) -> list[Row]:
    """Every run folder with its state."""
    return [("runs", [f"{job.label}   {job.state}   {job.folder}" for job in jobs])]


def time_rows(jobs: Sequence[Job], at_once: int) -> list[Row]:
    """An estimate: the time of finished runs of the same name, else what `lrft plan` says of one."""
    total, lines, whole = 0.0, [], True
    for name in dict.fromkeys(job.variant.name for job in jobs):
        own = [job for job in jobs if job.variant.name == name]
        left = [job for job in own if job.state not in ("finished", "diverged")]
        known = [s for job in own if job.state == "finished" and (s := job.record.get("seconds"))]
        if not left:
            continue
        each = statistics.median(known) if known else planned_seconds(left[0])
        if each is None:
            whole = False
            lines.append(f"{name}: {count(len(left), 'run')} (no estimate: lrft plan does not support this method)")
            continue
        total += each * len(left)
        source = "finished runs" if known else "from lrft plan"
        lines.append(f"{name}: {len(left)} x {duration(each)} ({source})")
    if not lines:
        return [("time", ["nothing left to train"])]
    together = f"about {duration(total / at_once)}{'' if whole else ' and more'}, {at_once} at a time"
    return [("time", [together + (" if parallel runs do not slow each other down" if at_once > 1 else ""), *lines])]


def planned_seconds(job: Job) -> float | None:
    """What a plan says of one run, or None. Reads the data, loads no weights."""
    recipe = job.recipe
    source = find_base(recipe)
    _, prepared = load_data(recipe, source)
    try:
        return make_plan(recipe, source, prepared, 1, others=locate_others(recipe, source)).seconds
    except RuntimeError:  # a method that looks at its tensors when it is built cannot be planned without any
        return None

"""What is kept in docs/benchmark/real, read back: final figures by tier, task, method and seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from real_benchmark import stages
from real_benchmark.design import ALL, Tier
from real_benchmark.rows.task import TEST
from real_benchmark.statistics import Difference, differences

Facts = Mapping[str, Any]


def finals(tier: Tier) -> dict[str, Facts]:
    """The finished final comparisons of a tier, by task."""
    found = {task: stages.kept(tier.name, f"final-{task}") for task in tier.tasks}
    return {task: facts for task, facts in found.items() if facts is not None}


def best_tier() -> Tier | None:
    """The largest tier with a final figure."""
    return next((tier for tier in reversed(ALL) if finals(tier)), None)


def figures(facts: Facts, name: str) -> dict[str, list[float]]:
    """`loss`, `figure` or `general` of the test by method, in the order of the seeds; whole ones only."""
    seeds = [str(seed) for seed in facts["seeds"]]
    return {
        run: [those[seed][name] for seed in seeds]
        for run, those in facts["judged"].items()
        if all(seed in those for seed in seeds)
    }


def against_baseline(facts: Facts, name: str) -> dict[str, Difference]:
    """Differences of a figure; those of what counts rows are at least one row uncertain."""
    return differences(figures(facts, name), facts["baseline"], 1 / TEST if name == "figure" else 0.0)

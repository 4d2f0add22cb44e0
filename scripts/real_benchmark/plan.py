"""What a tier takes in seconds, and the largest tier that fits a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from lrft.compare import suggest
from lrft.planning.communication import H100_FLOPS
from real_benchmark import design
from real_benchmark.design import BASELINE, FINAL_SEEDS, NEAR, ROWS_A_STEP, SEARCH_SEEDS, WIDE, Tier
from real_benchmark.rows.all import TASKS
from real_benchmark.rows.task import TEST, VALIDATION


@dataclass(frozen=True)
class Cost:
    """Seconds of one thread, measured.

    start   of a run, besides its tokens
    token   of one that is trained through LoRA
    seen    of one that is only read
    judge   of a final run's questions, besides its tokens
    said    of one token of an answer to one row, in a batch
    merge   of the merge check of a final run
    """

    start: float
    token: float
    seen: float
    judge: float
    said: float
    merge: float

    def run(self, task: str, steps: int, factor: float = 1.0) -> float:
        tokens = TASKS[task].tokens
        return self.start + steps * ROWS_A_STEP * tokens * self.token * factor + VALIDATION * tokens * self.seen

    def judged(self, task: str) -> float:
        """The figures of a finished run on the test rows and the general text."""
        asked = TASKS[task]
        return self.judge + TEST * (asked.tokens * self.seen + asked.most * self.said)


SIZE, LOADING, WRITING, BANDWIDTH = 8.03e9, 1e9, 2e8, 3.35e12
"""weights of the 8B model; bytes a second that are read and written on disk, as `lrft plan` takes them, and read from
the memory of an H100 (its datasheet)"""
SHARE = 0.1
"""of the operations that an H100 can do which steps of eight short rows reach, an assumption"""
_token, _load = SIZE * 4 / (SHARE * H100_FLOPS), 10 + 2 * SIZE / LOADING
ON_GPU = Cost(
    start=_load, token=_token, seen=_token / 2, judge=_load, said=2 * SIZE / BANDWIDTH / 10, merge=4 * SIZE / WRITING
)
"""of the 8B model in bf16: a forecast, nothing of it measured"""


@dataclass(frozen=True)
class Stage:
    """One comparison. kind: screen, narrow, rates or final. methods: how many there will be, with the baseline."""

    name: str
    kind: str
    task: str
    methods: int
    points: int
    seeds: tuple[int, ...]
    steps: int

    @property
    def runs(self) -> int:
        return self.methods * self.points * len(self.seeds)


def stages(tier: Tier) -> list[Stage]:
    """In the order in which they are run: a task is finished before the next begins."""
    found, left = [], tier.finalists + 1
    if tier.screens:
        on = design.SCREENED_ON
        found.append(
            Stage("screen", "screen", on, len(tier.methods) + 1, len(WIDE), SEARCH_SEEDS, tier.steps(on, tier.short))
        )
        found.append(Stage("narrow", "narrow", on, survivors(tier) + 1, 2, SEARCH_SEEDS, tier.steps(on, tier.half)))
    for task in tier.tasks:
        tried = len(NEAR) if tier.screens else len(WIDE)
        found.append(Stage(f"rates-{task}", "rates", task, left, tried, SEARCH_SEEDS, tier.steps(task, tier.half)))
        found.append(Stage(f"final-{task}", "final", task, left, 1, FINAL_SEEDS, tier.steps(task, tier.whole)))
    return found


def survivors(tier: Tier) -> int:
    """Methods that the screening leaves: half, and not fewer than the finalists."""
    return max(tier.finalists, math.ceil(len(tier.methods) / 2))


@cache
def factors() -> Mapping[str, float]:
    """Seconds of a step over LoRA's, by method, as docs/performance.md has them."""
    return {found.name: found.step for found in suggest.measured() if found.step is not None}


def factor(methods: Sequence[str]) -> float:
    """The mean over methods; one that was not measured counts as 1.2."""
    known = [factors().get(method, 1.2) for method in methods]
    return sum(known) / len(known)


def seconds(stage: Stage, tier: Tier, cost: Cost) -> float:
    """What a stage takes. Methods of later stages are not known yet: those of the tier stand for them."""
    return seconds_of(stage, factor((BASELINE, *tier.methods)), cost)


def seconds_of(stage: Stage, factor: float, cost: Cost) -> float:
    """factor: seconds of a step over LoRA's, the mean of the methods."""
    each = cost.run(stage.task, stage.steps, factor)
    if stage.kind != "final":
        return stage.runs * each
    return stage.runs * (each + cost.judged(stage.task)) + stage.methods * cost.merge


def total(tier: Tier, cost: Cost) -> float:
    return sum(seconds(stage, tier, cost) for stage in stages(tier))


def fitting(budget: float, cost: Cost) -> Tier:
    """The largest tier that takes at most `budget` seconds. Raises ValueError where none does."""
    fit = [tier for tier in design.TIERS if total(tier, cost) <= budget]
    if not fit:
        least = total(design.TIERS[0], cost) / 3600
        raise ValueError(f"the smallest tier takes {least:.2f} hours here; --budget {budget / 3600:g} is less")
    return max(fit, key=lambda tier: total(tier, cost))

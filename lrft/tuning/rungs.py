"""How many candidates are trained for how many steps, within a stated time.

Successive halving (Jamieson and Talwalkar, 2016, arXiv 1502.07943, algorithm 1) with a third kept: each rung trains
fewer candidates for three times the steps. A run of a rung has the whole schedule of its own length, warm-up and decay,
so that the last rung's runs are what `lrft train` makes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lrft.errors import UsageError
from lrft.utils.text import count, duration

KEPT = 3
"""one of so many goes on; the next rung has so many times the steps"""
MOST_RUNGS = 3
LEAST_STEPS = 4
LEAST_KEPT = 2
EXTENSIONS = 2
"""candidates beyond the range that time is kept for, at each of the first and the last rung"""
_TIME = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


@dataclass(frozen=True)
class Cost:
    """Seconds that a run takes: of a step, and of all else (start, data, evaluations, checkpoints)."""

    step: float
    run: float

    def of(self, steps: int) -> float:
        return self.run + self.step * steps


@dataclass(frozen=True)
class Rung:
    steps: int
    candidates: int


def seconds_of(text: str) -> int:
    """`30m`, `1h30m`, `90s` in seconds. Raises UsageError."""
    match = _TIME.fullmatch(text.strip())
    hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise UsageError(f"--budget: expected a time such as 30m, 1h30m or 90s (got {text})")
    return total


def make_rungs(candidates: int, full: int) -> list[Rung]:
    """Rungs whose last has `full` steps."""
    longest = 1 + int(math.log(max(full / LEAST_STEPS, 1), KEPT) + 1e-9)
    most = max(1, min(MOST_RUNGS, longest, candidates - 1))
    left, rungs = candidates, []
    for at in range(most):
        rungs.append(Rung(math.ceil(full / KEPT ** (most - 1 - at)), left))
        left = min(left, max(LEAST_KEPT, math.ceil(left / KEPT)))
    return rungs


def seconds_for(rungs: Sequence[Rung], cost: Cost) -> float:
    """What the rungs take one run at a time, with the candidates beyond the range."""
    ends = [rungs[0], *([rungs[-1]] if len(rungs) > 1 else [])]
    more = sum(EXTENSIONS * cost.of(rung.steps) for rung in ends)
    return more + sum(rung.candidates * cost.of(rung.steps) for rung in rungs)


def plan(candidates: int, full: int, budget: float | None, cost: Cost | None) -> list[Rung]:
    """The longest rungs that fit into `budget` seconds of one run at a time, to a hundredth of the recipe's length.

    None: of the recipe's own length. Raises UsageError when not even the shortest fit.
    """
    if budget is None or cost is None:
        return make_rungs(candidates, full)
    least = min(full, LEAST_STEPS)
    for share in range(100, -1, -1):  # more steps can be shorter: they may allow one rung more
        rungs = make_rungs(candidates, max(least, full * share // 100))
        if seconds_for(rungs, cost) <= budget:
            return rungs
    needed = duration(seconds_for(make_rungs(candidates, least), cost))
    raise UsageError(
        f"--budget is too short for {count(candidates, 'candidate')}: even the shortest runs take about {needed}",
        "Give more time, or fewer candidates with --rates.",
    )

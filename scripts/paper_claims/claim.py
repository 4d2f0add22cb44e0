"""What a claim of a paper is here: the comparison that tries it, what is measured of its runs, the rule that judges it.

A judgement reads what docs/claims keeps of a comparison, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    shows: bool
    figures: str
    """the sentence with what was measured"""


@dataclass(frozen=True)
class Measure:
    """A number that is asked of each run at its best point and each seed, beside the metric.

    name   in docs/claims
    title  of its column
    of     (the run's folder, the baseline's folder of the same seed) -> the number
    form   how it is printed
    """

    name: str
    title: str
    of: Callable[[str, str], float]
    form: str = ".3f"


@dataclass(frozen=True)
class Claim:
    """One claim of one paper.

    name     of its file in recipes/claims and in docs/claims
    setting  the base and the data that its comparison takes: random pairs, or the tasks of recipes/benchmark
    """

    name: str
    title: str
    paper: str
    says: str
    rule: str
    judge: Callable[[Facts], Verdict]
    measures: tuple[Measure, ...] = ()
    setting: Literal["pairs", "tasks"] = "pairs"


def of_run(facts: Facts, run: str) -> Mapping[str, float]:
    """The metric of a run at its best point, by seed."""
    found: Mapping[str, float] = next(row["values"] for row in facts["methods"] if row["run"] == run)
    return found


def lower_loss(facts: Facts, *, run: str) -> Verdict:
    """`run` has the lower loss on every seed, both at their best points."""
    base = facts["baseline"]
    mine, theirs = of_run(facts, run), of_run(facts, base)
    apart = [mine[seed] - theirs[seed] for seed in theirs]
    words = f"the loss of {run} is {losses(mine)}, that of {base} {losses(theirs)}"
    return Verdict(max(apart) < 0, f"{words}: {signed(apart, 1, '.2f')}.")


def together(held: Mapping[str, bool], figures: str) -> Verdict:
    """A claim of several methods shows where it holds for each; where it holds for some, the figures say for which."""
    some = [run for run, holds in held.items() if holds]
    others = [run for run in held if run not in some]
    if some and others:
        figures += f" For {' and '.join(some)} alone it holds, for {' and '.join(others)} it does not."
    return Verdict(not others, figures)


def shares(by_seed: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} %" for share in by_seed.values())


def losses(by_seed: Mapping[str, float]) -> str:
    return ", ".join(f"{loss:.3f}" for loss in by_seed.values())


def signed(values: list[float], factor: float, form: str) -> str:
    return ", ".join(format(factor * value, "+" + form) for value in values)

"""What papers say, each with the comparison that tries it and the rule by which it is judged.

A judgement reads what docs/claims.json keeps of a comparison, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

Facts = Mapping[str, Any]

DIGITS_AHEAD = 0.12
"""least lead in the share of right digits, on every seed"""
HALF = 0.5


@dataclass(frozen=True)
class Verdict:
    shows: bool
    figures: str
    """the sentence with what was measured"""


@dataclass(frozen=True)
class Claim:
    """One claim of one paper. `name`: of its file in recipes/claims."""

    name: str
    title: str
    paper: str
    says: str
    rule: str
    judge: Callable[[Facts], Verdict]
    digits: bool = False
    """whether the best runs are asked for all answers"""


def more_digits(facts: Facts, *, run: str) -> Verdict:
    """`run` answers DIGITS_AHEAD more of the digits right than the baseline, on every seed."""
    base = facts["baseline"]
    mine, theirs = facts["digits"][run], facts["digits"][base]
    ahead = [mine[seed] - theirs[seed] for seed in theirs]
    words = f"{run} answers {shares(mine)} of the digits right, {base} {shares(theirs)}"
    return Verdict(min(ahead) >= DIGITS_AHEAD, f"{words}: {signed(ahead, 100, '.0f')} points.")


def lower_loss(facts: Facts, *, run: str) -> Verdict:
    """`run` has the lower loss on every seed, both at their best points."""
    rows = {row["run"]: row["values"] for row in facts["methods"]}
    base = facts["baseline"]
    mine, theirs = rows[run], rows[base]
    apart = [mine[seed] - theirs[seed] for seed in theirs]
    words = f"the loss of {run} is {losses(mine)}, that of {base} {losses(theirs)}"
    return Verdict(max(apart) < 0, f"{words}: {signed(apart, 1, '.2f')}.")


def gains_by_rank(facts: Facts, *, run: str) -> Verdict:
    """On every seed the loss of `run` falls at each step of rank, and the baseline's less than half as far in all."""
    base, seeds = facts["baseline"], [str(seed) for seed in facts["seeds"]]
    mine, theirs = (by_rank(facts, who) for who in (run, base))
    falls = all(later[seed] < earlier[seed] for seed in seeds for earlier, later in pairwise(mine))
    gained, other = ([ends[0][seed] - ends[-1][seed] for seed in seeds] for ends in (mine, theirs))
    less = all(b < HALF * a for a, b in zip(gained, other, strict=True))
    ranks = ranks_of(facts, run)
    words = f"from rank {ranks[0]} to {ranks[-1]} the loss of {run} changes by {signed(gained, -1, '.2f')}"
    return Verdict(falls and less, f"{words}, that of {base} by {signed(other, -1, '.2f')}.")


def ranks_of(facts: Facts, run: str) -> list[int]:
    return sorted(point["point"]["adapter.rank"] for point in facts["grid"] if point["run"] == run)


def by_rank(facts: Facts, run: str) -> list[dict[str, float]]:
    """Losses by seed of the points of `run`, the lowest rank first."""
    points = [point for point in facts["grid"] if point["run"] == run]
    return [point["values"] for point in sorted(points, key=lambda point: point["point"]["adapter.rank"])]


def shares(by_seed: Mapping[str, float]) -> str:
    return ", ".join(f"{100 * share:.1f} %" for share in by_seed.values())


def losses(by_seed: Mapping[str, float]) -> str:
    return ", ".join(f"{loss:.3f}" for loss in by_seed.values())


def signed(values: list[float], factor: float, form: str) -> str:
    return ", ".join(format(factor * value, "+" + form) for value in values)


CLAIMS = (
    Claim(
        "mora",
        "MoRA memorises random pairs sooner than a LoRA of as many numbers",
        "Jiang et al., 2024, arXiv 2405.12130, table 2",
        "LLaMA-2 7B learns 10,000 pairs of UUIDs. After 700 steps MoRA of rank 8 has 87.4 % of the value's characters "
        "right, LoRA of rank 8 10.7 %; after 900 steps 100 % and 54.2 %. That is with the operator that shares rows "
        "and columns, and with the loss on the keys too.",
        "On every seed MoRA, with the operator that its authors recommend at rank 8, answers at least 12 points more "
        "of the hex digits right than LoRA after 100 steps, each at its own best learning rate.",
        partial(more_digits, run="mora"),
        digits=True,
    ),
    Claim(
        "rslora",
        "rsLoRA gains from a high rank where LoRA does not",
        "Kalajdzievski, 2023, arXiv 2312.03732",
        "LLaMA-2 7B on OpenOrca, ranks 4 to 2048, alpha and learning rate held fixed: with the factor alpha / r all "
        "ranks end at about the same perplexity, with alpha / sqrt(r) a higher rank ends lower.",
        "On every seed, at one learning rate and alpha 16, the loss of rsLoRA after 100 steps falls at each step of "
        "rank, and that of LoRA falls less than half as far from the lowest rank to the highest.",
        partial(gains_by_rank, run="rslora"),
    ),
    Claim(
        "pissa",
        "PiSSA goes further in the first steps",
        "Meng et al., 2024, arXiv 2404.02948",
        "Started from the weight's leading singular vectors the loss falls faster than from B = 0; Mistral-7B ends at "
        "72.86 % on GSM8K, LoRA at 67.7 %.",
        "On every seed PiSSA has the lower loss after 20 steps, each at its own best learning rate, alpha = rank.",
        partial(lower_loss, run="pissa"),
    ),
)

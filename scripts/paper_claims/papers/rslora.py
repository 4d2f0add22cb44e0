"""rsLoRA: with alpha / sqrt(r) a high rank pays."""

from __future__ import annotations

from itertools import pairwise

from paper_claims.claim import Claim, Facts, Verdict, signed

HALF = 0.5


def gains_by_rank(facts: Facts) -> Verdict:
    """On every seed rsLoRA's loss falls at each step of rank, and the baseline's less than half as far in all."""
    seeds = [str(seed) for seed in facts["seeds"]]
    mine, theirs = (by_rank(facts, who) for who in ("rslora", "lora"))
    falls = all(later[seed] < earlier[seed] for seed in seeds for earlier, later in pairwise(mine))
    gained, other = ([ends[0][seed] - ends[-1][seed] for seed in seeds] for ends in (mine, theirs))
    less = all(b < HALF * a for a, b in zip(gained, other, strict=True))
    ranks = sorted(point["point"]["adapter.rank"] for point in facts["grid"] if point["run"] == "rslora")
    words = f"from rank {ranks[0]} to {ranks[-1]} the loss of rslora changes by {signed(gained, -1, '.2f')}"
    return Verdict(falls and less, f"{words}, that of lora by {signed(other, -1, '.2f')}.")


def by_rank(facts: Facts, run: str) -> list[dict[str, float]]:
    """Losses by seed of the points of `run`, the lowest rank first."""
    points = [point for point in facts["grid"] if point["run"] == run]
    return [point["values"] for point in sorted(points, key=lambda point: point["point"]["adapter.rank"])]


CLAIM = Claim(
    "rslora",
    "rsLoRA gains from a high rank where LoRA does not",
    "Kalajdzievski, 2023, arXiv 2312.03732",
    "LLaMA-2 7B on OpenOrca, ranks 4 to 2048, alpha and learning rate held fixed: with the factor alpha / r all "
    "ranks end at about the same perplexity, with alpha / sqrt(r) a higher rank ends lower.",
    "On every seed, at one learning rate and alpha 16, the loss of rsLoRA after 100 steps falls at each step of "
    "rank, and that of LoRA falls less than half as far from the lowest rank to the highest.",
    gains_by_rank,
)

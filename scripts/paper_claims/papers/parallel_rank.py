"""LTE: heads of a low rank that learn apart add up to an update of a higher rank."""

from __future__ import annotations

from paper_claims.claim import Claim, Facts, Measure, Verdict
from paper_claims.papers.accumulated_rank import AS_HIGH, ranks, used


def higher_rank(facts: Facts) -> Verdict:
    """The mean rank is AS_HIGH times LoRA's, on every seed."""
    mine, theirs = (facts["measured"]["rank"][run] for run in ("lte", facts["baseline"]))
    times = [mine[seed] / theirs[seed] for seed in theirs]
    return Verdict(
        min(times) >= AS_HIGH,
        f"the mean rank of the update is {ranks(mine)} with lte, {ranks(theirs)} with lora: "
        f"{', '.join(f'{x:.1f}' for x in times)} times as high.",
    )


CLAIM = Claim(
    "parallel-rank",
    "LTE's heads add up to a higher rank than one LoRA's",
    "Huh et al., 2024, arXiv 2402.16828",
    "Low-rank heads that train on different rows and are merged now and then make up an update of a high rank: ViTs "
    "are trained so from scratch, with far less communication.",
    "On every seed, after 80 steps on the instructions, the update of four heads of rank 8, merged every five steps of "
    "each, has at least twice as many singular values above a hundredth of the largest as that of a LoRA of rank 8, in "
    "the mean over all layers. Here the heads learn in turn; the paper trains them side by side.",
    higher_rank,
    (Measure("rank", "rank of the update", used, ".1f"),),
    "tasks",
)

"""ReLoRA, ReMoRA: the update that has gathered over restarts has a higher rank than that of any part of the run."""

from __future__ import annotations

from paper_claims.asking import changed
from paper_claims.claim import Claim, Facts, Measure, Verdict

AS_HIGH = 2
"""least factor between the mean ranks, on every seed"""


def higher_rank(facts: Facts) -> Verdict:
    """ReLoRA's update has AS_HIGH times the mean rank of the baseline's, on every seed."""
    mine, both, theirs = (facts["measured"]["rank"][run] for run in ("relora", "remora", facts["baseline"]))
    times = [mine[seed] / theirs[seed] for seed in theirs]
    return Verdict(
        min(times) >= AS_HIGH,
        f"the mean rank of the update is {ranks(mine)} with relora, {ranks(both)} with remora, {ranks(theirs)} with "
        f"lora: relora's is {', '.join(f'{x:.1f}' for x in times)} times as high.",
    )


def ranks(by_seed: dict[str, float]) -> str:
    return ", ".join(f"{rank:.1f}" for rank in by_seed.values())


def used(folder: str, _: str) -> float:
    """Singular values of the update above a hundredth of the largest: the mean over all layers."""
    return float(changed(folder)["used_rank"])


def effective(folder: str, _: str) -> float:
    return float(changed(folder)["effective_rank"])


CLAIM = Claim(
    "accumulated-rank",
    "ReLoRA's restarts add up to a higher rank",
    "Lialin et al., 2023, arXiv 2307.05695; ReMoRA: Jiang et al., 2024, arXiv 2405.12130",
    "What a LoRA of rank r has learned is merged and a fresh one begun, again and again: the sum of K updates of rank "
    "r may have a rank of K r. In pre-training up to 350M weights that comes close to full training, where LoRA alone "
    "is clearly worse. ReMoRA does the same with MoRA's square matrix, and another operator after each restart.",
    "On every seed, after 100 steps with 3 restarts, the update has at least twice as many singular values above a "
    "hundredth of the largest as LoRA's of the same rank 8, in the mean over all layers, both at LoRA's best learning "
    "rate. This judges ReLoRA; ReMoRA is measured beside it, at 3e-3: MoRA's own "
    "matrix has a high rank before any restart.",
    higher_rank,
    (
        Measure("rank", "rank of the update", used, ".1f"),
        Measure("effective", "effective rank", effective, ".1f"),
    ),
)

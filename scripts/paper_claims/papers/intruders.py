"""Intruder dimensions: directions that matter in LoRA's weights and that the base does not have."""

from __future__ import annotations

from paper_claims.asking import changed
from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run

AS_MANY = 2
"""least factor between the counts, on every seed"""


def more_intruders(facts: Facts) -> Verdict:
    """LoRA has AS_MANY times the intruders of full training, which has learned as much, on every seed."""
    mine, theirs = (facts["measured"]["intruders"][run] for run in ("lora", "full"))
    as_many = all(mine[seed] > 0 and mine[seed] >= AS_MANY * theirs[seed] for seed in mine)
    lora, full = of_run(facts, "lora"), of_run(facts, "full")
    as_good = all(full[seed] <= lora[seed] for seed in lora)
    return Verdict(
        as_many and as_good,
        f"lora has {counts(mine)} intruder dimensions, full {counts(theirs)}, at losses of {losses(lora)} and "
        f"{losses(full)}.",
    )


def counts(by_seed: dict[str, float]) -> str:
    return ", ".join(f"{count:.0f}" for count in by_seed.values())


def intruders(folder: str, _: str) -> float:
    return float(changed(folder)["intruders"])


CLAIM = Claim(
    "intruders",
    "LoRA makes intruder dimensions, full fine-tuning few",
    "Shuttleworth et al., 2024, arXiv 2410.21228",
    "Among the ten leading left singular vectors of each weight that LoRA trained are some that are near none of the "
    "base's (|cosine| below 0.5); full fine-tuning that reaches the same has few. Their number grows with the "
    "learning rate, the steps, a smaller rank and a larger alpha.",
    "On every seed LoRA of rank 8 after 100 steps has at least twice as many intruder dimensions, over all weights, as "
    "full training has when it has reached the same loss or a lower one, each at its own best learning rate.",
    more_intruders,
    (Measure("intruders", "intruder dimensions", intruders, ".0f"),),
)

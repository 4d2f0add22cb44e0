"""Methods that train few numbers, beside LoRA: how much of what LoRA learns they learn, on rows that none has seen."""

from __future__ import annotations

from functools import cache

from method_benchmark import base

from paper_claims.asking import loss_on
from paper_claims.claim import Facts, Measure, Verdict, shares

VALIDATION = base.FOLDER / "instructions-validation.jsonl"
SHARE, FEWER = 0.95, 8
"""least share of LoRA's gain, and by what LoRA's numbers are divided for the most that may be trained"""
RULE = (
    "On every seed {name}, with at most an eighth of the numbers of LoRA of rank 8, gains at least 95 % of what LoRA "
    "gains after 120 steps, each at its own best learning rate. The gain is the untouched base's loss on the "
    "validation rows of the task `instructions`, less that of the run. Much of it is the form of the answers, which is "
    "learned soon: hence 95 %, set after one trial run of each with another seed."
)


def near_lora(facts: Facts, *, run: str) -> Verdict:
    """`run` has at least SHARE of lora's gain on every seed, with at most 1 / FEWER of its numbers."""
    gains = facts["measured"][GAIN.name]
    trained = {row["run"]: row["trained"] for row in facts["methods"]}
    share = {who: {seed: mine[seed] / gain for seed, gain in gains["lora"].items()} for who, mine in gains.items()}
    told = [
        f"{who}{'' if who == run else ' (not judged)'} has {shares(share[who])} of the gain of lora, with "
        f"{100 * trained[who] / trained['lora']:.1f} % of its numbers"
        for who in share
        if who != "lora"
    ]
    few = FEWER * trained[run] <= trained["lora"]
    return Verdict(few and min(share[run].values()) >= SHARE, f"{'; '.join(told)}.")


def gain(folder: str, _: str) -> float:
    """How far a run's loss on the validation rows lies below the base's."""
    return before() - loss_on(folder, VALIDATION)


@cache
def before() -> float:
    """The base's loss on the validation rows."""
    return loss_on(base.BASE, VALIDATION)


GAIN = Measure("gain", "gain over the base", gain)

"""CURLoRA and Comp-LoRA: a task is learned, and what the base knew stays."""

from __future__ import annotations

from functools import cache

from method_benchmark import base

from paper_claims.asking import loss_on
from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run, together

OLD = base.FOLDER / "english-held-out.jsonl"
ALIKE = 0.9
"""least share of LoRA's gain that has to be learned, on every seed"""


def keeps_more(facts: Facts) -> Verdict:
    """Both forget less than LoRA and have learned ALIKE of its gain, on every seed."""
    rises, gains = facts["measured"]["rise"], facts["measured"]["gain"]
    judged = ("curlora", "comp-lora")
    held = {
        run: all(
            rises[run][seed] < theirs and gains[run][seed] >= ALIKE * gains["lora"][seed]
            for seed, theirs in rises["lora"].items()
        )
        for run in judged
    }
    told = "; ".join(
        f"{run} {losses(rises[run])} at a loss on the task of {losses(of_run(facts, run))}" for run in ("lora", *judged)
    )
    return together(held, f"the loss on the English that the base has read rises by: {told}.")


def rise(folder: str, _: str) -> float:
    """How far the loss on lines of the base's own text rose."""
    return loss_on(folder, OLD) - before("english-held-out")


def gain(folder: str, _: str) -> float:
    """How far the loss on the task's validation rows fell."""
    return before("classification-validation") - loss_on(folder, base.FOLDER / "classification-validation.jsonl")


@cache
def before(rows: str) -> float:
    return loss_on(base.BASE, base.FOLDER / f"{rows}.jsonl")


CLAIM = Claim(
    "kept-knowledge",
    "CURLoRA and Comp-LoRA learn a task and forget less than LoRA",
    "Fawi, 2024, arXiv 2408.14572; arXiv 2501.15040, 2025",
    "CURLoRA trains a small matrix between columns and rows of the weight of small norm: Mistral-7B, tuned on one "
    "task after the other, keeps a perplexity of 5.44 on WikiText-2, with LoRA it ends at 53,896. Comp-LoRA keeps the "
    "update out of the weight's leading directions: in few-shot classification of images 1.3 points more of what the "
    "model could do before are left.",
    "On every seed, after 60 steps on the task `classification`, the loss on 256 lines of the English that the base "
    "has read rises less than with LoRA for both, and both have at least 90 % of what LoRA has gained on the task; "
    "each at the better of two learning rates, LoRA and Comp-LoRA of rank 8, CURLoRA of rank 32, whose square matrix "
    "has fewer numbers.",
    keeps_more,
    (Measure("rise", "rise of the loss on the base's text", rise), Measure("gain", "gain on the task", gain)),
    "tasks",
)

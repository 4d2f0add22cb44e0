"""LoRA learns less and forgets less: new pairs against those that the base knew."""

from __future__ import annotations

from functools import cache

from paper_claims import pairs
from paper_claims.asking import loss_on
from paper_claims.claim import Claim, Facts, Measure, Verdict, losses, of_run

OLD = pairs.FOLDER / "old.jsonl"


def less_of_both(facts: Facts) -> Verdict:
    """LoRA ends with the higher loss on the new pairs and the smaller rise of that on the old ones, on every seed.

    Full training at a lower rate is not judged: it is told.
    """
    mine, theirs = of_run(facts, "lora"), of_run(facts, "full")
    rises = facts["measured"]["rise"]
    learns_less = all(mine[seed] > theirs[seed] for seed in mine)
    forgets_less = all(rises["lora"][seed] < rises["full"][seed] for seed in mine)
    slower = rises["full-slower"]
    apart = [slower[seed] - rises["lora"][seed] for seed in slower]
    return Verdict(
        learns_less and forgets_less,
        f"the loss on the new pairs is {losses(mine)} with lora, {losses(theirs)} with full; on the old ones it rises "
        f"by {losses(rises['lora'])} and {losses(rises['full'])}. With full at the lower rate (full-slower, not "
        f"judged) they are {losses(of_run(facts, 'full-slower'))} and {losses(slower)}: it forgets "
        f"{'less' if max(apart) < 0 else 'no less'} than lora.",
    )


def rise(folder: str, _: str) -> float:
    """How far the loss on the old pairs rose over the base's."""
    return loss_on(folder, OLD) - before()


@cache
def before() -> float:
    """The base's loss on the old pairs."""
    return loss_on(pairs.BASE, OLD)


CLAIM = Claim(
    "forgetting",
    "LoRA learns less and forgets less, each at the rate that learns most",
    "Biderman et al., 2024, arXiv 2405.09673",
    "Llama-2-7B on code and mathematics: in the usual low-rank setting LoRA learns less than full fine-tuning, more so "
    "in continued pre-training, and forgets less of what the base could do.",
    "On every seed LoRA of rank 8 has the higher loss on the new pairs and the smaller rise of the loss on the pairs "
    "that the base knew, after 100 steps, each at its own best learning rate. (That of full-slower was measured after "
    "this had been judged.)",
    less_of_both,
    (Measure("rise", "rise of the loss on the old pairs", rise),),
)

"""LoRAM: trained on a pruned base, used on the whole one."""

from __future__ import annotations

from paper_claims.claim import Claim, Facts, Verdict, losses, of_run, shares
from paper_claims.few_numbers import GAIN

SHARE = 0.8
"""least share of LoRA's gain, on every seed"""


def carries_over(facts: Facts) -> Verdict:
    gains = facts["measured"][GAIN.name]
    share = {seed: gains["loram"][seed] / theirs for seed, theirs in gains["lora"].items()}
    return Verdict(
        min(share.values()) >= SHARE,
        f"loram has {shares(share)} of the gain of lora, at losses on the whole base of "
        f"{losses(of_run(facts, 'loram'))} and {losses(of_run(facts, 'lora'))}.",
    )


CLAIM = Claim(
    "loram",
    "LoRAM's adapter, trained on a pruned base, serves the whole one",
    "Zhang et al., 2025, arXiv 2502.13533",
    "Factors that were trained on LLaMA-2-70B without most of its weights are filled up with zeros for the whole "
    "model: better than LoRA on a smaller one, near LoRA on the large one. Before that the pruned model is aligned by "
    "continued pre-training, which is left out here.",
    "On every seed LoRAM, trained on a base without a quarter of the heads and channels of every block, has at least "
    "80 % of what LoRA gains on the task `instructions`, both measured on the whole base after 120 steps at their "
    "better learning rate.",
    carries_over,
    (GAIN,),
    "tasks",
)

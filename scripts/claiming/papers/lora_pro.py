"""LoRA-Pro: gradients of A and B whose step is nearest to the full gradient's."""

from __future__ import annotations

from claiming.claim import Claim, Facts, Verdict, losses, of_run, shares

CLOSED = 0.2
"""least share of the gap between LoRA and full fine-tuning that is closed, on every seed"""


def closes_the_gap(facts: Facts) -> Verdict:
    """Full fine-tuning ends lower than the baseline, and lora-pro by at least CLOSED of that, on every seed."""
    lora, pro, full = (of_run(facts, run) for run in (facts["baseline"], "lora-pro", "full"))
    gaps = {seed: lora[seed] - full[seed] for seed in lora}
    words = f"the loss of lora is {losses(lora)}, of lora-pro {losses(pro)}, of full {losses(full)}"
    if min(gaps.values()) <= 0:
        return Verdict(False, f"{words}: there is no gap to close.")
    closed = {seed: (lora[seed] - pro[seed]) / gap for seed, gap in gaps.items()}
    return Verdict(min(closed.values()) >= CLOSED, f"{words}: {shares(closed)} of the gap is closed.")


CLAIM = Claim(
    "lora-pro",
    "LoRA-Pro comes nearer to full fine-tuning",
    "Wang et al., 2024, arXiv 2407.18242",
    "With gradients of A and B that move the weight as nearly as they can along the full gradient, LoRA ends close to "
    "full fine-tuning: T5-base on GLUE, larger models on dialogue, mathematics and code.",
    "On every seed the loss of LoRA-Pro after 100 steps lies below LoRA's by at least a fifth of the gap between LoRA "
    "and full fine-tuning, each at its own best learning rate, both at rank 8. LoRA-Pro has AdamW behind it, in the "
    "form without moments as large as the weights.",
    closes_the_gap,
)

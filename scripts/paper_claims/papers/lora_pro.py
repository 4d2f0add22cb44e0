"""LoRA-Pro: gradients of A and B whose step is nearest to the full gradient's."""

from __future__ import annotations

from paper_claims.claim import Claim, Facts, Verdict, losses, of_run, shares

CLOSED = 0.2
"""least share of the gap between LoRA and full fine-tuning that is closed, on every seed"""


def closes_the_gap(facts: Facts) -> Verdict:
    """Full fine-tuning ends lower than the baseline, and one form of LoRA-Pro by at least CLOSED of that, on every
    seed."""
    lora, full = (of_run(facts, run) for run in (facts["baseline"], "full"))
    forms = {row["run"]: row["values"] for row in facts["methods"] if row["run"].startswith("lora-pro")}
    gaps = {seed: lora[seed] - full[seed] for seed in lora}
    told = "".join(f"of {run} {losses(found)}, " for run, found in forms.items())
    words = f"the loss of lora is {losses(lora)}, {told}of full {losses(full)}"
    if min(gaps.values()) <= 0:
        return Verdict(False, f"{words}: there is no gap to close.")
    closed = {
        run: {seed: (lora[seed] - found[seed]) / gap for seed, gap in gaps.items()} for run, found in forms.items()
    }
    share = "; ".join(f"{run} closes {shares(found)}" for run, found in closed.items())
    return Verdict(any(min(found.values()) >= CLOSED for found in closed.values()), f"{words}: {share} of the gap.")


CLAIM = Claim(
    "lora-pro",
    "LoRA-Pro comes nearer to full fine-tuning",
    "Wang et al., 2024, arXiv 2407.18242",
    "With gradients of A and B that move the weight as nearly as they can along the full gradient, LoRA ends close to "
    "full fine-tuning: T5-base on GLUE, larger models on dialogue, mathematics and code.",
    "On every seed the loss of LoRA-Pro after 100 steps lies below LoRA's by at least a fifth of the gap between LoRA "
    "and full fine-tuning, each at its own best learning rate, all at rank 8: with AdamW behind it, or with running "
    "means of the weight's steps (lora-pro-weight), the released code's way. The first was tried first; its rates "
    "below 0.008, full's 0.01, and the second form were added after that.",
    closes_the_gap,
)

"""PiSSA: a start from the leading singular vectors."""

from __future__ import annotations

from functools import partial

from paper_claims.claim import Claim, lower_loss

CLAIM = Claim(
    "pissa",
    "PiSSA goes further in the first steps",
    "Meng et al., 2024, arXiv 2404.02948",
    "Started from the weight's leading singular vectors the loss falls faster than from B = 0; Mistral-7B ends at "
    "72.86 % on GSM8K, LoRA at 67.7 %.",
    "On every seed PiSSA has the lower loss after 20 steps, each at its own best learning rate, alpha = rank.",
    partial(lower_loss, run="pissa"),
)

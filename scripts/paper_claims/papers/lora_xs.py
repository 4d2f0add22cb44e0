"""LoRA-XS: a small square matrix between the weight's own singular vectors."""

from __future__ import annotations

from functools import partial

from paper_claims.claim import Claim
from paper_claims.few_numbers import GAIN, RULE, near_lora

CLAIM = Claim(
    "lora-xs",
    "LoRA-XS comes near LoRA with about a twentieth of its numbers",
    "Bałazy et al., 2024, arXiv 2405.17604, README of the released code",
    "Models of 7 billion weights: more than 100 times fewer trainable parameters than LoRA, competitive on GLUE, "
    "GSM8K and "
    "MATH.",
    RULE.format(name="LoRA-XS of rank 16"),
    partial(near_lora, run="lora-xs"),
    (GAIN,),
    "tasks",
)

"""VeRA: vectors around two random matrices that all layers share."""

from __future__ import annotations

from functools import partial

from paper_claims.claim import Claim
from paper_claims.few_numbers import GAIN, RULE, near_lora

CLAIM = Claim(
    "vera",
    "VeRA comes near LoRA with an eighth of its numbers",
    "Kopiczko et al., 2023, arXiv 2310.11454, abstract",
    "On GLUE and E2E the quality of LoRA with a tenth of its trainable parameters; instruction tuning of Llama-2-7B "
    "with "
    "1.4 million.",
    RULE.format(name="VeRA of rank 256") + " LoRA of rank 1, which has about as many, is not judged: it stands beside.",
    partial(near_lora, run="vera"),
    (GAIN,),
    "tasks",
)

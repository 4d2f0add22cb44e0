"""SVFit: the weight's leading singular values."""

from __future__ import annotations

from functools import partial

from paper_claims.claim import Claim
from paper_claims.few_numbers import GAIN, RULE, near_lora

CLAIM = Claim(
    "svfit",
    "SVFit comes near LoRA with a sixteenth of its numbers",
    "Sun et al., 2024, arXiv 2409.05926, abstract",
    "Training the leading singular values alone, between frozen singular vectors, is better than LoRA with a sixteenth "
    "of its trainable parameters.",
    RULE.format(name="SVFit of all 256 singular values"),
    partial(near_lora, run="svfit"),
    (GAIN,),
    "tasks",
)

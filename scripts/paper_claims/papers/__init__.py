"""One claim, one file: in the order of the page."""

from __future__ import annotations

from paper_claims.papers import (
    accumulated_rank,
    alignment,
    ba_lora,
    dylora,
    forgetting,
    galore_memory,
    intruders,
    lora_plus,
    lora_pro,
    lora_xs,
    mora,
    olora,
    pissa,
    rslora,
    vera,
)

CLAIMS = (
    mora.CLAIM,
    rslora.CLAIM,
    pissa.CLAIM,
    olora.CLAIM,
    alignment.CLAIM,
    lora_plus.CLAIM,
    lora_pro.CLAIM,
    dylora.CLAIM,
    accumulated_rank.CLAIM,
    galore_memory.CLAIM,
    forgetting.CLAIM,
    intruders.CLAIM,
    vera.CLAIM,
    lora_xs.CLAIM,
    ba_lora.CLAIM,
)

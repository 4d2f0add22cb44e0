"""One claim, one file: in the order of the page."""

from __future__ import annotations

from claiming.papers import (
    accumulated_rank,
    alignment,
    dylora,
    forgetting,
    galore_memory,
    intruders,
    lora_plus,
    lora_pro,
    mora,
    olora,
    pissa,
    rslora,
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
)

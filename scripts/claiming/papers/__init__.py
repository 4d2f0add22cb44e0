"""One claim, one file: in the order of the page."""

from __future__ import annotations

from claiming.papers import alignment, lora_plus, lora_pro, mora, olora, pissa, rslora

CLAIMS = (
    mora.CLAIM,
    rslora.CLAIM,
    pissa.CLAIM,
    olora.CLAIM,
    alignment.CLAIM,
    lora_plus.CLAIM,
    lora_pro.CLAIM,
)

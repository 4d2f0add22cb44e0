"""One claim, one file: in the order of the page."""

from __future__ import annotations

from claiming.papers import accumulated_rank, dylora, forgetting, galore_memory, intruders, mora, pissa, rslora

CLAIMS = (
    mora.CLAIM,
    rslora.CLAIM,
    pissa.CLAIM,
    forgetting.CLAIM,
    intruders.CLAIM,
    accumulated_rank.CLAIM,
    galore_memory.CLAIM,
    dylora.CLAIM,
)

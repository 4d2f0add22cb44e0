"""One claim, one file: in the order of the page."""

from __future__ import annotations

from claiming.papers import mora, pissa, rslora

CLAIMS = (
    mora.CLAIM,
    rslora.CLAIM,
    pissa.CLAIM,
)

"""BLEU of sacrebleu."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class Bleu(Metric):
    """BLEU (Papineni et al., 2002) of all generated answers together, from 0 to 100, as sacrebleu computes it."""

    name: ClassVar[str] = "bleu"
    needs: ClassVar[str] = "sacrebleu"

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        from sacrebleu import corpus_bleu

        return float(corpus_bleu([a["answer"] for a in answers], [[a["expected"] for a in answers]]).score)

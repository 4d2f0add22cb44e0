"""ROUGE of rouge-score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class Rouge(Metric):
    """Mean ROUGE (Lin, 2004) of generated answers, as rouge-score computes it: an F measure."""

    name: ClassVar[str] = "rouge"
    needs: ClassVar[str] = "rouge-score"

    kind: Literal["rouge1", "rouge2", "rougeL", "rougeLsum"] = "rougeL"
    """Of single words, of pairs of words, or of the longest common subsequence, of the text or of its lines."""
    stemmer: bool = False
    """Compares English words without their endings."""

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.kind], use_stemmer=self.stemmer)
        found = [scorer.score(a["expected"], a["answer"])[self.kind].fmeasure for a in answers]
        return float(sum(found) / len(found))

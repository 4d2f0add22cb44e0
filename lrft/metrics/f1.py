"""F1 of words, as SQuAD counts them. Rajpurkar et al., 2016, arXiv 1606.05250, section 6.1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lrft.metrics.base import Metric


@dataclass(frozen=True)
class F1(Metric):
    """Mean F1 of the words of generated and expected answers, without case, punctuation and articles (SQuAD)."""

    name: ClassVar[str] = "f1"

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        return sum(f1(words(a["expected"]), words(a["answer"])) for a in answers) / len(answers)


def words(text: str) -> list[str]:
    """The words of a text as they are compared."""
    bare = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def f1(expected: list[str], found: list[str]) -> float:
    """Harmonic mean of precision and recall of words; of no words, whether both have none."""
    if not expected or not found:
        return float(expected == found)
    common = (Counter(expected) & Counter(found)).total()
    return 2 * common / (len(expected) + len(found))

"""Which methods differ from LoRA beyond chance: paired t tests over seeds, corrected for the number of methods by Holm.

The p value of a method is that of a paired t test of its final figures against LoRA's of the same seeds. Holm's
procedure (1979) on these p values of all methods of a task keeps the chance of naming any method wrongly at 5 %. The
intervals shown are simultaneous by Bonferroni: each at 1 - 5 % / m for m methods, so that all hold together with 95 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lrft.compare.intervals import mean, spread, t_below, t_quantile

ALPHA = 0.05


@dataclass(frozen=True)
class Difference:
    """Of a method's figures from LoRA's, pair by pair. low, high: simultaneous; p: of the method alone; differs: by
    Holm. One pair gives no interval and p = 1."""

    mean: float
    low: float | None
    high: float | None
    p: float
    differs: bool


def p_value(differences: Sequence[float]) -> float:
    """Two-sided, of the paired t test that their mean is 0."""
    deviation, n = spread(differences), len(differences)
    if deviation is None:
        return 1.0
    middle = mean(differences)
    if deviation == 0:
        return 0.0 if middle else 1.0
    return 2 * (1 - t_below(abs(middle) / (deviation / math.sqrt(n)), n - 1))


def half_width(differences: Sequence[float], methods: int) -> float | None:
    deviation, n = spread(differences), len(differences)
    if deviation is None:
        return None
    return t_quantile(1 - ALPHA / (2 * methods), n - 1) * deviation / math.sqrt(n)


def holm(p_values: Mapping[str, float]) -> set[str]:
    """The names whose hypothesis of no difference is rejected."""
    rejected: set[str] = set()
    ordered = sorted(p_values, key=lambda name: p_values[name])
    for at, name in enumerate(ordered):
        if p_values[name] > ALPHA / (len(ordered) - at):
            break
        rejected.add(name)
    return rejected


def differences(values: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Difference]:
    """values: by method, in the order of the seeds. All methods but the baseline, which are one family."""
    pairs = {
        name: [a - b for a, b in zip(those, values[baseline], strict=True)]
        for name, those in values.items()
        if name != baseline
    }
    told = holm({name: p_value(those) for name, those in pairs.items()})
    found = {}
    for name, those in pairs.items():
        middle, half = mean(those), half_width(those, len(pairs))
        low, high = (None, None) if half is None else (middle - half, middle + half)
        found[name] = Difference(middle, low, high, p_value(those), name in told)
    return found

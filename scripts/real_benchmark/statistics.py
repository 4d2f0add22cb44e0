"""Which methods differ from LoRA beyond chance: paired t tests over seeds, corrected for the number of methods by Holm.

The p value of a method is that of a paired t test of its final figures against LoRA's of the same seeds. Holm's
procedure (1979) on these p values of all methods of a task keeps the chance of naming any method wrongly at 5 %. The
intervals shown are simultaneous by Bonferroni: each at 1 - 5 % / m for m methods, so that all hold together with 95 %.

Figures that count rows are coarse: three seeds can differ by exactly as many rows by chance, and their deviation be 0.
So a deviation counts as `least` at least, which is one row for such figures.
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


def deviation_of(differences: Sequence[float], least: float) -> float | None:
    """The standard deviation of a sample, `least` at least; None for one value."""
    found = spread(differences)
    return None if found is None else max(found, least)


def p_value(differences: Sequence[float], least: float = 0.0) -> float:
    """Two-sided, of the paired t test that their mean is 0; 1 where nothing is known of chance: for one value, or for
    values without any deviation."""
    deviation, n = deviation_of(differences, least), len(differences)
    if not deviation:
        return 1.0
    middle = mean(differences)
    return 2 * (1 - t_below(abs(middle) / (deviation / math.sqrt(n)), n - 1))


def half_width(differences: Sequence[float], methods: int, least: float = 0.0) -> float | None:
    """Of the simultaneous interval; None where nothing is known of chance."""
    deviation, n = deviation_of(differences, least), len(differences)
    if not deviation:
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


def differences(values: Mapping[str, Sequence[float]], baseline: str, least: float = 0.0) -> dict[str, Difference]:
    """Of all methods but the baseline, which are one family. values: by method, in the order of the seeds. least: of a
    deviation."""
    pairs = {
        name: [a - b for a, b in zip(those, values[baseline], strict=True)]
        for name, those in values.items()
        if name != baseline
    }
    told = holm({name: p_value(those, least) for name, those in pairs.items()})
    found = {}
    for name, those in pairs.items():
        middle, half = mean(those), half_width(those, len(pairs), least)
        low, high = (None, None) if half is None else (middle - half, middle + half)
        found[name] = Difference(middle, low, high, p_value(those, least), name in told)
    return found

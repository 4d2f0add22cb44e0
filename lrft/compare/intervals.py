"""Mean, spread, paired intervals by Student's t, and the Pareto front. Plain floats, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
FORMULA = (
    "d = metric of the run minus metric of the baseline at the same seed, n pairs; mean(d) ± t · s / √n with s the "
    "standard deviation of d (n - 1 in the denominator) and t the 97.5 % quantile of Student's t with n - 1 degrees of "
    "freedom. With one pair there is no interval."
)
# What the continued fraction is computed to.
_TINY, _PRECISION, _TERMS = 1e-300, 1e-15, 10_000


@dataclass(frozen=True)
class Paired:
    """The mean difference over seeds and its 95 % interval; no interval from one pair."""

    n: int
    mean: float
    low: float | None
    high: float | None


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1 in the denominator); None for one value."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """The differences of two samples, pair by pair. At least one pair."""
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    n, middle, s = len(differences), mean(differences), spread(differences)
    if s is None:
        return Paired(n, middle, None, None)
    half = t_quantile(0.5 + CONFIDENCE / 2, n - 1) * s / math.sqrt(n)
    return Paired(n, middle, middle - half, middle + half)


def t_quantile(p: float, freedom: int) -> float:
    """The t below which Student's distribution holds `p`, 0.5 <= p < 1. By bisection of the distribution function."""
    low, high = 0.0, 1.0
    if p == 0.5:
        return 0.0
    while t_below(high, freedom) < p:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if t_below(middle, freedom) < p else (low, middle)
    return high


def t_below(t: float, freedom: int) -> float:
    """Student's distribution function for t >= 0: 1 - I_x(v/2, 1/2) / 2 with x = v / (v + t^2).

    Near the middle x rounds to 1: there by its complement, 1/2 + I_(1-x)(1/2, v/2) / 2.
    """
    whole = freedom + t * t
    if t * t < freedom:
        return 0.5 + incomplete_beta(t * t / whole, 0.5, freedom / 2) / 2
    return 1 - incomplete_beta(freedom / whole, freedom / 2, 0.5) / 2


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b), 0 <= x <= 1.

    Its continued fraction (DLMF 8.17.22) by Lentz's method, on the side where it converges fast.
    """
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(1 - x, b, a)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    ) / a  # fmt: skip
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION:
            break
    return front * value


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, badness) pairs that no other pair beats: none is as good in both and better in one.

    By rising cost. Equal pairs are all on the front.
    """
    front = [
        i
        for i, (cost, bad) in enumerate(points)
        if not any(c <= cost and b <= bad and (c < cost or b < bad) for c, b in points)
    ]
    return sorted(front, key=lambda i: points[i])

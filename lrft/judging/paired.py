"""Differences of two models on the same rows, with intervals: the paired bootstrap over rows.

Rows are drawn with replacement, the same for both, and every figure is computed anew from what the drawn rows add to it
(Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13: the percentile interval). It covers which
rows were measured; not what another seed of the training would have given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrft.judging.side import Side
from lrft.objectives.base import Objective

DRAWS = 2000
SEED = 0
CONFIDENCE = 0.95
FEW = 0.9
"""share of the draws in which a figure has to be finite for an interval"""
AT_ONCE = 1 << 22
"""numbers drawn at a time: memory does not grow with the draws"""
EXACT_MATCH = "exact_match"


@dataclass(frozen=True)
class Difference:
    """A figure of both, the first minus the second, and its interval; None where there is none."""

    first: float
    second: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def tells_apart(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def facts(self) -> dict[str, Any]:
        return {**asdict(self), "tells_apart": self.tells_apart}


def figures_of(side: Side, objective: Objective, counts: Tensor) -> dict[str, Tensor]:
    """Every figure, float64 (draws,). counts: float64 (draws, rows), how often each row counts in each draw."""
    loss = counts @ side.losses / (counts @ side.weights)
    found = {"loss": loss}
    if objective.perplexity:
        found["perplexity"] = loss.clamp(max=700.0).exp()
    if side.sums:
        each = [objective.figures({k: drawn(k, v, objective, row) for k, v in side.sums.items()}) for row in counts]
        names = dict.fromkeys(name for figures in each for name in figures)
        found |= {name: torch.tensor([figures.get(name, math.nan) for figures in each]) for name in names}
    if side.answers:
        asked = torch.tensor([key in side.answers for key in side.keys], dtype=torch.float64)
        hits = [bool(side.answers.get(key, {}).get("match")) for key in side.keys]
        found[EXACT_MATCH] = counts @ torch.tensor(hits, dtype=torch.float64) / (counts @ asked)
    return found


def drawn(name: str, values: Tensor, objective: Objective, counts: Tensor) -> Tensor:
    """What the rows add up to: values (rows, ...) -> (...), or (..., rows drawn) where each has a place of its own."""
    if name in objective.placed:
        return values.repeat_interleave(counts.long(), dim=0).movedim(0, -1)
    return torch.tensordot(counts, values, dims=1)


def differences(
    first: Side, second: Side, objective: Objective, comparable: Callable[[str], bool] = lambda name: True
) -> dict[str, Difference]:
    """Every figure that both have, of sides with the same rows. comparable: whether a difference means something."""
    n = len(first.keys)
    once = torch.ones(1, n, dtype=torch.float64)
    whole = [figures_of(side, objective, once) for side in (first, second)]
    names = [name for name in whole[0] if name in whole[1]]
    found: dict[str, list[float]] = {name: [] for name in names}
    for counts in resamples(n) if n > 1 else ():
        a, b = (figures_of(side, objective, counts) for side in (first, second))
        for name in names:
            if name in a and name in b:
                found[name] += (a[name] - b[name]).tolist()
    made = {}
    for name in names:
        one, other = (figures[name].item() for figures in whole)
        sure = (one - other, *interval(found[name])) if comparable(name) else ()
        made[name] = Difference(one, other, *sure)
    return made


def resamples(n: int, draws: int = DRAWS) -> Iterator[Tensor]:
    """How often each of `n` rows is drawn, float64 (some draws, n), `draws` in all; the same at every call."""
    generator = np.random.default_rng(SEED)
    size = max(1, AT_ONCE // n)
    for at in range(0, draws, size):
        yield torch.from_numpy(generator.multinomial(n, [1 / n] * n, size=min(size, draws - at))).double()


def interval(values: list[float]) -> tuple[float, float] | tuple[None, None]:
    """The middle 95 % of the draws, or nothing when too few of them are finite."""
    finite = np.array([value for value in values if math.isfinite(value)])
    if not len(finite) or len(finite) < FEW * len(values):
        return None, None
    low, high = np.quantile(finite, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def facts(found: Mapping[str, Difference]) -> dict[str, Any]:
    return {name: one.facts() for name, one in found.items()}

"""Which rows of several sources form an epoch, and in which order, for given shares of the steps.

Source k with share w_k has its row j at the time (j + 1/2) / w_k; the epoch is all rows in the order of their times. So
every stretch of it has each source in its share, to within one row. `stop` says when an epoch ends:

first   when the first source has run out
all     when the last source has run out: others begin again
last    when all rows have come once: a source that has run out leaves its place to the others

Where an epoch takes a part of a source, or more than it has, the next one goes on behind it: over the epochs no row
comes again before all others of its source have. All is a function of the seed and the epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from lrft.utils.seeds import seed_of

Stop = Literal["first", "last", "all"]
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Mixture:
    """members: the ids of each source's rows, int64 (n_k,), none empty. shares: above 0, of any sum."""

    members: Sequence[np.ndarray]
    shares: Sequence[float]
    stop: Stop
    seed: int
    shuffle: bool

    def __post_init__(self) -> None:
        if len(self.members) != len(self.shares) or not self.members:
            raise ValueError(f"{len(self.members)} sources with {len(self.shares)} shares")
        if any(len(ids) == 0 for ids in self.members) or min(self.shares) <= 0:
            raise ValueError("every source of a mixture has rows, and a share above 0")

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The rows of an epoch from each source."""
        times = [len(ids) / share for ids, share in zip(self.members, self.shares, strict=True)]
        if self.stop == "last":
            return tuple(len(ids) for ids in self.members)
        end = min(times) if self.stop == "first" else max(times)
        return tuple(max(1, int(end * share + _ROUNDING)) for share in self.shares)

    @cached_property
    def _sources(self) -> np.ndarray:
        """The source of each row of an epoch, in order: int64 (sum of counts,)."""
        times = [(np.arange(n) + 0.5) / share for n, share in zip(self.counts, self.shares, strict=True)]
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        return owners[np.argsort(np.concatenate(times), kind="stable")]

    def order(self, epoch: int) -> np.ndarray:
        """The rows of `epoch` (from 0), in order: int64 (sum of counts,)."""
        found = np.empty(len(self._sources), dtype=np.int64)
        for k, (ids, n) in enumerate(zip(self.members, self.counts, strict=True)):
            found[self._sources == k] = self._stretch(k, ids, epoch * n, n)
        return found

    def _stretch(self, k: int, ids: np.ndarray, start: int, n: int) -> np.ndarray:
        """Rows start to start + n of source k, which comes whole again and again, each time in another order."""
        first, last = start // len(ids), (start + n - 1) // len(ids)
        rounds = np.concatenate([self._round(k, ids, number) for number in range(first, last + 1)])
        return rounds[start - first * len(ids) :][:n]

    def _round(self, k: int, ids: np.ndarray, number: int) -> np.ndarray:
        if not self.shuffle:
            return ids
        return np.random.default_rng(seed_of(self.seed, "mixture", k, number)).permutation(ids)

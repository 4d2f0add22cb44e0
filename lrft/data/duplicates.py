"""Rows that are the same, and rows that are nearly so.

Rows are sequences of whole numbers: token ids, or numbers of words. Two rows are similar by the Jaccard index of their
shingles, the runs of SHINGLE numbers in them. Candidates are found by MinHash with bands (Broder, 1997; Leskovec et
al., Mining of Massive Datasets, chapter 3), and the index of each candidate is then computed exactly: what is reported
is so, and of the pairs at the threshold fewer than one in a thousand is missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SHINGLE = 5
SIMILAR = 0.8
BANDS, BAND = 16, 4
COMPARED = 20
"""At most so many rows of one bucket are compared with each of its others"""
_PRIME = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Pair:
    """Rows `a` < `b`. similarity: 1.0 for the same content."""

    a: int
    b: int
    similarity: float


def same_rows(rows: Sequence[np.ndarray]) -> list[list[int]]:
    """Groups of at least two rows with the same numbers in the same order."""
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(row.tobytes(), []).append(i)
    return [group for group in groups.values() if len(group) > 1]


def similar_rows(rows: Sequence[np.ndarray], at_least: float = SIMILAR) -> list[Pair]:
    """Pairs of rows, not the same, whose Jaccard index is at least `at_least`; by their rows."""
    first: dict[bytes, int] = {}
    different = [i for i, row in enumerate(rows) if first.setdefault(row.tobytes(), i) == i]
    sets = [shingles(rows[i]) for i in different]
    found = {}
    for a, b in _candidates(sets):
        similarity = jaccard(sets[a], sets[b])
        if similarity >= at_least:
            found[a, b] = Pair(different[a], different[b], similarity)
    return sorted(found.values(), key=lambda pair: (pair.a, pair.b))


def shingles(row: np.ndarray) -> np.ndarray:
    """The hashes of a row's runs of SHINGLE numbers, each once, sorted: uint64 (m,). A shorter row is one run."""
    width = min(SHINGLE, len(row))
    if width == 0:
        return np.zeros(0, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(row.astype(np.uint64), width)
    hashed = np.full(len(windows), width, dtype=np.uint64)
    for k in range(width):
        hashed = _mixed(hashed * _PRIME + windows[:, k])
    return np.unique(hashed)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """What two sets share over what they have together."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)


def _candidates(sets: Sequence[np.ndarray]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in all rows of some band of their signatures; some come more than once."""
    signatures = _signatures(sets)
    for band in range(BANDS):
        keys = np.ascontiguousarray(signatures[:, band * BAND : (band + 1) * BAND]).view(f"V{8 * BAND}")[:, 0]
        _, bucket = np.unique(keys, return_inverse=True)
        order = np.argsort(bucket, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bucket[order])) + 1):
            for k, b in enumerate(members[1:].tolist(), 1):
                yield from ((a, b) for a in members[max(0, k - COMPARED) : k].tolist())


def _signatures(sets: Sequence[np.ndarray]) -> np.ndarray:
    """MinHash: uint64 (n, BANDS * BAND). Rows without a shingle have one of their own."""
    salts = _mixed(np.arange(1, BANDS * BAND + 1, dtype=np.uint64) * _PRIME)
    found = np.empty((len(sets), len(salts)), dtype=np.uint64)
    for i, one in enumerate(sets):
        found[i] = _mixed(one[:, None] ^ salts).min(axis=0) if len(one) else _mixed(salts + np.uint64(i))
    return found


def _mixed(values: np.ndarray) -> np.ndarray:
    """A permutation of uint64 in which every bit decides on every bit: the finaliser of SplitMix64."""
    mixed = values ^ (values >> np.uint64(30))
    mixed = mixed * np.uint64(0xBF58476D1CE4E5B9)
    mixed = mixed ^ (mixed >> np.uint64(27))
    mixed = mixed * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))

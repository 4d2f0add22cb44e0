"""Validation split by content hash, so that adding rows does not move others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from lrft.errors import DataError

LEAST = 16
"""Rows that the default holds out of a small set, or a quarter of them where that is less"""


def split_by_default(digests: Sequence[int] | np.ndarray, share: float, seed: int) -> tuple[np.ndarray, str]:
    """`split` for a recipe that says nothing about validation: it refuses no number of rows.

    Also, in words, where that is not the share: at least LEAST rows, or none.
    """
    n, different = len(digests), _different(digests)
    places = _places(digests, seed)
    least = min(LEAST, n // 4)
    held_out = places < share
    enough = held_out.sum() >= least
    if not enough:
        held_out = places <= np.partition(places, least - 1)[least - 1]
    copies = f"; equal rows stay together, and {different:,} of {n:,} differ" if different < n else ""
    if least == 0 or 2 * held_out.sum() > n:
        reason = f"{n:,} rows are few" if least == 0 else "that would be more than half of them"
        return np.zeros(n, dtype=bool), f"no validation rows are held out: {reason}{copies}"
    return (
        held_out,
        ""
        if enough
        else f"{int(held_out.sum()):,} of {n:,} rows are held out, not {share:.0%}, which are too few{copies}",
    )


def split(digests: Sequence[int] | np.ndarray, validation: float | int | str, seed: int) -> np.ndarray:
    """bool (N,): True for rows of the validation set. Rows of equal content are on the same side.

    digests: 8 bytes of each row's content hash. validation: a fraction in (0, 1), a number of rows, or
    "none". A number of rows is exceeded where the last one has duplicates. Raises DataError when a side would
    be empty.
    """
    places = _places(digests, seed)
    if validation == "none":
        return np.zeros(len(places), dtype=bool)
    if isinstance(validation, int):
        if validation >= len(places):
            raise DataError(
                f"data.validation: {validation:,} of {len(places):,} rows leaves no training rows",
                "Use fewer validation rows, or set data.validation: none.",
            )
        held_out = places <= np.partition(places, validation - 1)[validation - 1]
    else:
        held_out = places < float(validation)
    different = _different(digests)
    copies = f": equal rows stay together, and only {different:,} differ" if different < len(places) else ""
    if not held_out.any():
        some = f"Give a number of rows, such as data.validation: {max(1, len(places) // 10)}, or none."
        raise DataError(
            f"data.validation: {validation} of {len(places):,} rows gives no validation rows{copies}",
            some if len(places) > 1 else "Set data.validation: none.",
        )
    if held_out.all():
        raise DataError(
            f"data.validation: {validation} of {len(places):,} rows leaves no training rows{copies}",
            "Hold out less (equal rows stay together), or set data.validation: none.",
        )
    return held_out


def set_apart(digests: Sequence[int] | np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool (N,): True for a share of the training rows, at least one, that serve another purpose. As `split`: equal
    rows stay together. Raises DataError when none would be left to train on."""
    places = _places(digests, seed)
    wanted = max(1, round(share * len(places)))
    apart = places <= np.partition(places, wanted - 1)[wanted - 1]
    if apart.all():
        raise DataError(
            f"{len(places):,} training rows: {wanted:,} of them set apart, with those equal to them, leave none to "
            "train on",
            "Give more rows that differ.",
        )
    return apart


def _places(digests: Sequence[int] | np.ndarray, seed: int) -> np.ndarray:
    """float64 (N,)"""
    return np.fromiter((_place(int(digest), seed) for digest in digests), dtype=np.float64, count=len(digests))


def _different(digests: Sequence[int] | np.ndarray) -> int:
    return len(np.unique(np.asarray(digests, dtype=np.uint64)))


def _place(digest: int, seed: int) -> float:
    """A number in [0, 1) that depends on the content and the seed only."""
    hashed = hashlib.sha256(digest.to_bytes(8) + seed.to_bytes(8, signed=True)).digest()
    return int.from_bytes(hashed[:6]) / 2**48

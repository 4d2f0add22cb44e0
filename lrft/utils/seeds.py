"""Seeds for everything that is drawn: a function of what they are for, and of nothing that was drawn before."""

from __future__ import annotations

import hashlib


def seed_of(seed: int, *words: object) -> int:
    """A 63-bit seed for one purpose: the same everywhere, whatever was drawn before."""
    digest = hashlib.sha256(repr((seed, *words)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1

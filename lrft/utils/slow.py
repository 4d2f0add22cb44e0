"""What takes long is said, once it does."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 5.0
"""after which a person wonders whether anything happens"""


@contextmanager
def telling(text: str, *, silent: bool = False, seconds: float = SECONDS) -> Iterator[None]:
    """Inside, `text` is printed on the standard error when `seconds` have passed. Nothing for what is faster."""
    timer = threading.Timer(seconds, lambda: print(f"{text} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if not silent:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()

"""What takes long is said, once it does; and what is done is logged, where somebody wants to know.

`LRFT_VERBOSE=1`, which `--verbose` sets for a command and the processes that it starts, logs what lrft does, and what
libraries log, on the standard error.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS = 5.0
"""after which a person wonders whether anything happens"""
VERBOSE = "LRFT_VERBOSE"
LOG = logging.getLogger("lrft")

# (what is done, how much of it, of how much)
Watcher = Callable[[str, int, int], None]
_watchers: list[Watcher] = []


@contextmanager
def telling(text: str, *, silent: bool = False, seconds: float = SECONDS) -> Iterator[None]:
    """Inside, `text` is printed on the standard error when `seconds` have passed. Nothing for what is faster."""
    timer = threading.Timer(seconds, lambda: print(f"{text} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    if not silent:
        timer.start()
    LOG.info(text)
    began = time.monotonic()
    try:
        yield
    finally:
        timer.cancel()
        LOG.info("%s: %.1f s", text, time.monotonic() - began)


def tell(what: str, done: int, total: int) -> None:
    """How far something long is, for whoever watches; from any thread."""
    for watcher in _watchers:
        watcher(what, done, total)


@contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Inside, `watcher` is given what `tell` is told."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


def verbose() -> bool:
    """Whether everything is to be logged."""
    return bool(os.environ.get(VERBOSE))


def begin_log() -> None:
    """Log to the standard error from here on, in this process and in those that it starts."""
    os.environ[VERBOSE] = "1"
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")

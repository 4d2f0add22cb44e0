"""How far long work is, on the standard error: a live line on a terminal, else a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock

from lrft.utils.slow import Watcher, watching


@contextmanager
def shown() -> Iterator[Watcher]:
    """Inside, what `lrft.utils.slow.tell` is told is shown; the same may be told to what this gives."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from lrft.tracking.console import PROGRESS_SECONDS, REDRAW_SECONDS

    told, lock, console = time.monotonic(), Lock(), Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        every = PROGRESS_SECONDS if live is None else REDRAW_SECONDS

        def watcher(what: str, done: int, total: int) -> None:
            nonlocal told
            with lock:
                if done >= total or time.monotonic() - told < every:
                    return
                told = time.monotonic()
                text = f"{what}: {done:,} of {total:,}"
                if live is not None:
                    live.update(Text(text), refresh=True)
                else:
                    print(text, file=sys.stderr, flush=True)

        with watching(watcher):
            yield watcher

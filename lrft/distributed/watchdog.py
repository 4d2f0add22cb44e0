"""Reports where a process is when it makes no progress: processes waiting for each other print nothing.

A thread of its own, because the main one may stand inside of an exchange with others. It names the process, the step
and what was begun last; the stacks of all threads go to a file.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

QUIET_SECONDS = 60.0
# How often it looks, as a share of that time.
LOOKS = 20
# The number of the process that has started this one and waits for it: without it nobody would.
LAUNCHER = "LRFT_LAUNCHER"


class Watchdog:
    """Inside the context, `at` says what this process begins to do.

    folder   where stacks are written; None: nowhere
    """

    def __init__(self, rank: int, world: int, folder: Path | None) -> None:
        self.rank, self.world, self.folder = rank, world, folder
        self.seconds = float(os.environ.get("LRFT_QUIET_SECONDS", QUIET_SECONDS))
        self.step = 0
        self.doing, self.since, self.told = "starting", time.monotonic(), False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def at(self, doing: str) -> None:
        """Note what is begun now."""
        self.doing, self.since, self.told = doing, time.monotonic(), False

    @contextmanager
    def during(self, doing: str) -> Iterator[None]:
        """Inside, `doing` is what is done; afterwards again what was done before."""
        before = self.doing
        self.at(doing)
        yield
        self.at(before)

    def __enter__(self) -> Watchdog:
        if self.world > 1 or LAUNCHER in os.environ:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        launcher = os.environ.get(LAUNCHER)
        while not self._ended.wait(self.seconds / LOOKS):
            if self.world > 1 and not self.told and time.monotonic() - self.since > self.seconds:
                self.told = True
                self._say()
            if launcher is not None and os.getppid() != int(launcher):
                # As Ctrl-C would: the loop finishes its step and saves.
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _say(self) -> None:
        text = (
            f"process {self.rank + 1} of {self.world} has made no progress for {self.seconds:g} s: "
            f"step {self.step + 1}, {self.doing}"
        )
        if self.folder is not None and self.folder.is_dir():
            path = self.folder / f"quiet-{self.rank}.txt"
            with path.open("w") as file:
                print(text, file=file, flush=True)
                faulthandler.dump_traceback(file)
            text += f" (stacks in {path})"
        print(text, file=sys.stderr, flush=True)

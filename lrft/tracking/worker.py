"""A thread that does one thing after the other for somebody who must not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

WAITING = 10_000
"""tasks that may wait; more mean that nothing is done any more"""


class Worker:
    """Tasks in the order in which they come, in a daemon thread. The first that fails ends it."""

    def __init__(self, name: str) -> None:
        self.tasks: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self.failure: Exception | None = None
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def do(self, task: Callable[[], None]) -> None:
        """Returns at once. Raises what an earlier task has failed with, TimeoutError where too many tasks wait."""
        self._raise()
        try:
            self.tasks.put_nowait(task)
        except queue.Full:
            raise TimeoutError(f"it does not answer: {WAITING:,} records wait for it") from None

    def end(self, seconds: float) -> None:
        """Waits until all is done. Raises what a task has failed with, TimeoutError when that takes longer."""
        try:
            self.tasks.put_nowait(None)
        except queue.Full:
            raise TimeoutError(f"it does not answer: {WAITING:,} records wait for it") from None
        self.thread.join(seconds)
        self._raise()
        if self.thread.is_alive():
            raise TimeoutError(f"it did not end within {seconds:g} s of the run's end: its last records may be missing")

    def _raise(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            try:
                task()
            except BaseException as error:  # also SystemExit, which some raise
                self.failure = error if isinstance(error, Exception) else RuntimeError(repr(error))
                return

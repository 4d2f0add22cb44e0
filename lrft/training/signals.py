"""Ctrl-C and SIGTERM: the first asks the loop to finish its step and save, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Inside the context, `received` is 0 or the number of the first signal. Handlers are put back at the end.

    speak: say on standard error that the signal was understood.
    """

    WATCHED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self, speak: bool = False) -> None:
        self.received = 0
        self.speak = speak
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python cannot set handlers
            self._before = {number: signal.signal(number, self._note) for number in self.WATCHED}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise SystemExit(128 + number)
        self.received = number
        if self.speak:
            # print() may be in the middle of another line: a signal can come at any moment
            os.write(2, b"\nfinishing this step and saving; the same signal again leaves at once\n")

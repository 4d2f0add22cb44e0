"""What servers have in common: their address in words, and running until someone ends them."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType


def address(found: object) -> str:
    host, port, *_ = found if isinstance(found, tuple) else ("", "")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def until_stopped(run: Callable[[], None]) -> None:
    """Call `run` until Ctrl-C or SIGTERM."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with suppress(KeyboardInterrupt):
            run()
    finally:
        signal.signal(signal.SIGTERM, before)

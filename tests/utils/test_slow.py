"""What takes long is said once it does, and nothing else."""

from __future__ import annotations

import threading

import pytest

from lrft.utils.slow import telling


def timers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)}


@pytest.mark.parametrize(
    ("silent", "seconds", "said"), [(False, 0.0, "reading ...\n"), (False, 3600.0, ""), (True, 0.0, "")]
)
def test_what_is_slow_is_said_and_what_is_fast_is_not(
    silent: bool, seconds: float, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = timers()
    with telling("reading", silent=silent, seconds=seconds):
        for timer in timers() - before if not seconds else ():
            timer.join()
    for timer in timers() - before:
        timer.join()
    assert capsys.readouterr().err == said


def test_an_error_inside_ends_it() -> None:
    before = timers()
    with pytest.raises(KeyError), telling("reading", seconds=3600):
        raise KeyError
    for timer in timers() - before:
        timer.join(timeout=60)
        assert not timer.is_alive()

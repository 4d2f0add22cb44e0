"""Many small cases in forked workers, each watched: what it raises, how long it takes, what it holds and touches."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stress.tally import Figure, Tally

SECONDS = 2.0
MEGABYTES = 300
HANG = 30
BATCH = 2500
# What a process must not do: (event, whether these arguments are allowed).
TOUCHING = {"os.rename", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "os.link"}
OUTSIDE = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo"}

Case = Callable[[int], str]
"""Does case n and returns how it ended, in a word or two. Raises what is a violation."""


class Hang(BaseException):
    """Raised by the alarm."""


class Guard:
    """An audit hook that notes every write outside `own`, every process and every connection."""

    def __init__(self, own: Path) -> None:
        self.own = str(own)
        self.found: list[str] = []

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        writes = event == "open" and self._writes(arguments)
        outside = self.own not in str(arguments[:1]) and arguments[:1] != (os.devnull,)
        if event in OUTSIDE or ((writes or event in TOUCHING) and outside):
            self.found.append(f"{event} {arguments[0]}")

    @staticmethod
    def _writes(arguments: tuple[Any, ...]) -> bool:
        _, mode, flags = arguments
        by_mode = isinstance(mode, str) and any(letter in mode for letter in "wax+")
        return by_mode or bool(isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def run_all(tally: Tally, figure: Figure, case: Case, count: int, own: Path) -> None:
    """Cases 0 to count - 1, in batches of forked processes; each may write only below `own`."""
    for start in range(0, count, BATCH):
        if tally.over:
            break
        _batch(figure, case, range(start, min(start + BATCH, count)), own)


def _batch(figure: Figure, case: Case, numbers: range, own: Path) -> None:
    """A worker writes a line for each case; when it dies, the case is known and the rest goes to a new one."""
    report = own / "report.jsonl"
    left = numbers
    while left:
        report.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _work(case, left, own, report)
        _, status = os.waitpid(pid, 0)
        lines = [json.loads(line) for line in report.read_text().splitlines()] if report.exists() else []
        for line in lines:
            figure.tried += 1
            figure.note(line["end"])
            figure.violations += [f"case {line['case']}: {words}" for words in line["violations"]]
        left = left[len(lines) :]
        if status and left:
            figure.tried += 1
            figure.wrong(f"case {left[0]}: the process died, {os.waitstatus_to_exitcode(status)}")
            left = left[1:]


def _work(case: Case, numbers: range, own: Path, report: Path) -> None:
    try:
        guard = Guard(own)
        sys.addaudithook(guard)
        signal.signal(signal.SIGALRM, _alarm)
        with report.open("w", encoding="utf-8") as file:
            for n in numbers:
                file.write(json.dumps(_watched(case, n, guard)) + "\n")
                file.flush()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _alarm(number: int, frame: Any) -> None:
    raise Hang


def _watched(case: Case, n: int, guard: Guard) -> dict[str, Any]:
    violations: list[str] = []
    end = "violation"
    held, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    signal.alarm(HANG)
    try:
        end = case(n)
    except Hang:
        violations.append(f"still busy after {HANG} s")
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        violations.append(f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:200]}")
    finally:
        signal.alarm(0)
    seconds = time.process_time() - began
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - held) / 1024
    if seconds > SECONDS:
        violations.append(f"{seconds:.1f} s of processor time")
    if grown > MEGABYTES:
        violations.append(f"{grown:.0f} MB more")
    violations += guard.found
    guard.found.clear()
    return {"case": n, "end": end, "violations": violations}

"""Commands of lrft as processes, several at a time, stopped together by one signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from lrft.compare.warm import WarmProcess
from lrft.distributed.watchdog import LAUNCHER
from lrft.errors import Stopped

LOOK_EVERY = 0.05
WATCHED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Task:
    """`python -m MODULE ARGUMENTS`: errors and warnings go to `log`, what it prints to `out` or to the log as well."""

    label: str
    arguments: Sequence[str]
    log: Path
    ended: Callable[[int, float], None]
    """called with the exit code (negative: a signal) and the seconds that it took"""
    out: Path | None = None
    module: str = "lrft"
    begins: Callable[[], None] = lambda: None
    """called before the process is made"""


@dataclass
class _Running:
    task: Task
    process: subprocess.Popen[bytes] | WarmProcess
    slot: int
    began: float


class Pool:
    """Runs tasks, at most `jobs` at a time. Inside the context a signal ends all of them, after a checkpoint each.

    gpus: the devices that are dealt out, one to a task, when several tasks run at a time. Without any, processes are
    forks of one that has imported everything.
    """

    def __init__(self, jobs: int, gpus: Sequence[str] = ()) -> None:
        self.jobs = jobs
        self.gpus = list(gpus) if jobs > 1 else []
        self.warm = not gpus
        self.received = 0
        self._running: list[_Running] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Pool:
        self._before = {number: signal.signal(number, self._note) for number in WATCHED}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for one in self._running:  # only after an error of our own
            one.process.kill()
            one.process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def run(self, tasks: Sequence[Task]) -> None:
        """All of them, in order. Raises Stopped after a signal, when every process has ended."""
        waiting = list(tasks)
        while self._running or (waiting and not self.received):
            while waiting and len(self._running) < self.jobs and not self.received:
                self._start(waiting.pop(0))
            self._look()
            time.sleep(LOOK_EVERY)
        if self.received:
            raise Stopped(
                f"stopped by signal {self.received}; running jobs saved a checkpoint",
                self.received,
                "Run the same command again to continue.",
            )

    def _start(self, task: Task) -> None:
        slot = min(set(range(self.jobs)) - {one.slot for one in self._running})
        task.log.parent.mkdir(parents=True, exist_ok=True)
        task.begins()
        process = self._process(task, self._surroundings(slot))
        self._running.append(_Running(task, process, slot, time.monotonic()))
        if self.received:  # it came while the process was being made
            process.send_signal(signal.SIGTERM)

    def _process(self, task: Task, environment: dict[str, str]) -> subprocess.Popen[bytes] | WarmProcess:
        with task.log.open("wb") as log, (task.out or task.log).open("wb") as out:
            if self.warm:
                return WarmProcess(
                    task.module, task.arguments, out=task.out or task.log, log=task.log, environment=environment
                )
            return subprocess.Popen(
                [sys.executable, "-m", task.module, *task.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log if task.out is None else out,
                stderr=log,
                env=environment | {LAUNCHER: str(os.getpid())},
                start_new_session=True,  # a terminal's Ctrl-C comes here, and from here to each once
            )

    def _surroundings(self, slot: int) -> dict[str, str]:
        """The environment of a task: its share of the cores, and a GPU of its own."""
        given = {}
        if self.gpus:
            given["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        elif self.jobs > 1:
            share = max(1, len(os.sched_getaffinity(0)) // self.jobs)
            given["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", str(share))
        return {**os.environ, **given}

    def _look(self) -> None:
        """Take leave of the processes that have ended."""
        for one in [one for one in self._running if one.process.poll() is not None]:
            self._running.remove(one)
            one.task.ended(one.process.wait(), time.monotonic() - one.began)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            # print() may be in the middle of another line: a signal can come at any moment
            os.write(2, b"\nsaving the runs that are going on; the same signal again leaves at once\n")
        self.received = self.received or number
        for one in self._running:
            # Always SIGTERM: a process that is still starting, or that was born deaf to SIGINT, ends by it as well.
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)


def visible_gpus(count: int) -> list[str]:
    """The names of this process's GPUs, of which torch sees `count`."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in named.split(",") if name.strip()]
    return names[:count] if names else [str(n) for n in range(count)]

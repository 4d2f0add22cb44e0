"""Processes that begin at once: forks of one that has imported what a run needs.

The imports of a short run take more processor time than the run. Python's fork server makes them once, in a process
that has one thread and computes nothing; each fork of it is a process of its own with its own environment, output,
signals and exit code, so that its results and its failures are its own. Not for GPUs: CUDA's state does not survive a
fork, and a driver may be started by an import. Where some import starts a thread, the processes begin cold: a lock that
a thread holds at the moment of a fork stays locked for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

from lrft.distributed.watchdog import LAUNCHER

# What libraries read when they are loaded. Threads of theirs would not survive a fork.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
PRELOADED = "lrft.cli.preloaded"

_context = multiprocessing.get_context("forkserver")


class WarmProcess:
    """`python -m MODULE ARGUMENTS` in a session of its own, with what a pool uses of subprocess.Popen's interface.

    out, log: files to append what it prints and its errors to
    """

    def __init__(
        self, module: str, arguments: Sequence[str], *, out: Path, log: Path, environment: Mapping[str, str]
    ) -> None:
        _start_server(environment)
        given = (module, list(arguments), out.resolve(), log.resolve(), dict(environment), Path.cwd())
        self._process = _context.Process(target=_run, args=given)
        self._process.start()

    def poll(self) -> int | None:
        """The exit code, -N after signal N, or None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self) -> int:
        self._process.join()
        return self._process.exitcode or 0


def _start_server(environment: Mapping[str, str]) -> None:
    """Start the server if it does not run, in `environment`: torch reads its number of threads when it is loaded."""
    _context.set_forkserver_preload([PRELOADED])
    before = dict(os.environ)
    os.environ.update({**environment, **ALONE})
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _run(module: str, arguments: list[str], out: Path, log: Path, environment: dict[str, str], folder: Path) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in ((1, out), (2, log)):
        to = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.dup2(to, number)
        os.close(to)
    if len(list(Path(f"/proc/{os.getppid()}/task").iterdir())) > 1:
        _begin_cold(module, arguments, environment)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = [module, *arguments]
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _begin_cold(module: str, arguments: list[str], environment: dict[str, str]) -> None:
    """Become a process that shares nothing with the server."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    waiting = multiprocessing.parent_process()
    launcher = {} if waiting is None else {LAUNCHER: str(waiting.pid)}
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment | launcher)


def _leave_with_parent() -> None:
    """Ask this process to save and end, as Ctrl-C does, when the one that waits for it is gone: nobody else would."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

"""Processes of Python that begin at once: forks of one that has imported torch, transformers and lrft.

Each is a process of its own, with an environment, output, signals and an exit code. What such tests leave out is the
cold start, which those keep that start `python -m lrft` themselves.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

LRFT = "from lrft.cli.main import main; main()"
# What the server finds while it imports: no library may start threads.
HERE = Path(__file__).parent
SERVER = {
    "PYTHONPATH": f"{HERE}:{HERE.parent}",
    "OMP_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
SERVERS = multiprocessing.get_context("forkserver")
SERVERS.set_forkserver_preload(["preloaded"])


class Forked:
    """A process that runs Python `code` with `arguments`, as `python -c` does, in `environment`."""

    def __init__(self, code: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.arguments = ["-c", *arguments]
        self.folder = tempfile.TemporaryDirectory(prefix="forked-")
        self.outputs = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        for path in self.outputs:
            path.touch()
        _ensure_running()
        given = dict(os.environ if environment is None else environment)
        self.process = SERVERS.Process(target=_begin, args=(code, self.arguments, given, Path.cwd(), self.outputs))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def wait(self, seconds: float) -> CompletedProcess[str]:
        """Its exit code and what it wrote. Raises TimeoutError, after killing it, when it has not ended by then."""
        self.process.join(seconds)
        late = self.process.is_alive()
        if late:
            self.process.kill()
            self.process.join()
        out, err = (path.read_text(encoding="utf-8") for path in self.outputs)
        self.folder.cleanup()
        if late:
            raise TimeoutError(f"not ended after {seconds} s\n{out[-3000:]}\n{err[-3000:]}")
        return CompletedProcess(self.arguments, self.process.exitcode or 0, out, err)


def wait_for_all(processes: Sequence[Forked], seconds: float) -> list[CompletedProcess[str]]:
    """What they have ended with. As soon as one fails the others are killed: they would wait for it."""
    until = time.monotonic() + seconds
    running = {process.process.sentinel: process.process for process in processes}
    while running:
        ended = connection.wait(list(running), max(until - time.monotonic(), 0))
        if not ended or any(_exit_code(running.pop(sentinel)) for sentinel in ended):
            for process in running.values():
                process.kill()
            break
    return [process.wait(60) for process in processes]


def _exit_code(process: BaseProcess) -> int:
    process.join()
    return process.exitcode or 0


def run(
    code: str, *arguments: str, environment: Mapping[str, str] | None = None, seconds: float = 600
) -> CompletedProcess[str]:
    """As subprocess.run of `python -c code`, with its output."""
    return Forked(code, *arguments, environment=environment).wait(seconds)


def _ensure_running() -> None:
    before = dict(os.environ)
    os.environ.update(SERVER)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _begin(code: str, arguments: list[str], environment: dict[str, str], folder: Path, outputs: list[Path]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what is in the background deaf to it
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, 1):
        to = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(to, number)
        os.close(to)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = arguments
    try:
        exec(compile(code, "<forked>", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
        sys.stderr.flush()

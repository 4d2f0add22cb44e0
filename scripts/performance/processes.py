"""One process, waited for: its time, its processor time and its peak memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Ended:
    """A finished process. `peak_mb` is its largest resident memory, at least that of the process that started it."""

    code: int
    wall: float
    cpu: float
    peak_mb: float
    out: str
    error: str

    def measured(self) -> dict[str, float]:
        return {"wall": self.wall, "cpu": self.cpu, "peak_mb": self.peak_mb}

    def reason(self) -> str:
        """The last line that says why it failed."""
        lines = [line.strip() for line in (self.error or self.out).splitlines() if line.strip()]
        return lines[-1] if lines else f"exit code {self.code}"


def run(command: Sequence[str | Path], *, threads: int, env: Mapping[str, str] | None = None) -> Ended:
    """Run `command` in the checkout's root with that many threads. What it prints is kept."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        began = time.monotonic()
        surroundings = environment(threads) | {"BENCH_BEGAN": repr(began)} | dict(env or {})
        process = subprocess.Popen([str(w) for w in command], cwd=ROOT, env=surroundings, stdout=out, stderr=error)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            raise
        wall = time.monotonic() - began
        process.returncode = code = os.waitstatus_to_exitcode(status)
        out.seek(0)
        error.seek(0)
        cpu = usage.ru_utime + usage.ru_stime
        return Ended(code, wall, cpu, usage.ru_maxrss / 1024, out.read(), error.read())


def environment(threads: int) -> dict[str, str]:
    """Ours, with the same number of threads for every library, and nothing asked of the network."""
    path = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": path, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    # Without its compiled files Python would compile lrft anew in every process.
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return ours | counts | offline | quiet

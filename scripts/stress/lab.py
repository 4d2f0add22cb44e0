"""A place to break runs in: a tiny model, its data, a recipe; commands as forked children of one warm process.

Starting Python with torch takes seconds, a fork takes milliseconds. Fork is safe here because this process stays
single-threaded: it computes nothing itself. All commands go through the real command line, `lrft.cli.main.run_command`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}

KEYS = (
    "adapter.dropout=0.2",
    "data.packing=true",
    "evaluation.every=1",
    "evaluation.at_start=true",
    "checkpoint.every=1",
    "checkpoint.keep=2",
)
CRASHED = 99
STOPS = (signal.SIGINT, signal.SIGTERM)
PATIENCE = 120.0  # seconds after which a child is taken to hang
# Files of a run that tell the time, the machine or the run's own random id.
TIMED = ("manifest.json", "run.json", "log.txt", "report.md", "metrics.jsonl", "environment.json", "loss.png", ".lock")


def warm() -> None:
    """Import everything that a command needs, without starting a thread."""
    import accelerate  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401

    "".encode("utf-8-sig")  # a codec that another user may not be able to load later

    torch.set_num_threads(1)
    if (threads := len(list(Path("/proc/self/task").iterdir()))) != 1:
        raise RuntimeError(f"{threads} threads before the first fork: a child could hang")


@dataclass
class Outcome:
    """How a command ended. `code`: its exit code, or minus the signal that killed it."""

    code: int
    text: str
    seconds: float

    @property
    def traceback(self) -> bool:
        return self.code == CRASHED or "Traceback (most recent call last)" in self.text

    @property
    def last_line(self) -> str:
        return next((line for line in reversed(self.text.splitlines()) if line.strip()), "")


class Child:
    """A running command. Its output goes to a file."""

    def __init__(self, action: Callable[[], int | None], output: Path, uid: int | None = None) -> None:
        self.output = output
        self.began = time.monotonic()
        # Python's own work after a fork must not be interrupted: a signal that comes early waits for `_child`.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        self.pid = os.fork()
        if self.pid == 0:
            _child(action, output, uid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)  # until `wait`, a dead child still owns its number

    @property
    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait(self) -> Outcome:
        waited, then = 0.0, time.monotonic()
        while not self.ended:
            time.sleep(0.002)
            # A machine that was put to sleep comes back with minutes gone: a pause counts for one second.
            waited, then = waited + min(time.monotonic() - then, 1.0), time.monotonic()
            if waited > PATIENCE:
                self.kill()
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        text = self.output.read_text(encoding="utf-8", errors="replace")
        return Outcome(code, text, time.monotonic() - self.began)


def _child(action: Callable[[], int | None], output: Path, uid: int | None) -> None:
    code = CRASHED
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        # The streams of the process that was forked may still hold text of its own.
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        if uid is not None:
            os.setgid(uid)
            os.setuid(uid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        code = action() or 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except KeyboardInterrupt:
        code = 130  # as Python's own ending, between the command's last line and its exit
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


FILE_EVENTS = {"open", "os.rename", "os.symlink", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "shutil.rmtree"}


def watch(folder: Path, act: Callable[[int, str], None]) -> Callable[[], None]:
    """Makes a process call act(n, names) right before its nth file operation below `folder`, counted from 1."""
    seen, busy, inside = 0, False, str(folder)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen, busy
        if busy or event not in FILE_EVENTS or inside not in (names := " ".join(map(str, arguments[:2]))):
            return
        seen += 1
        busy = True  # what `act` does to files does not count
        act(seen, names)
        busy = False

    return lambda: sys.addaudithook(hook)


class Lab:
    """A temporary folder with base/, train.jsonl, validation.jsonl, recipe.yaml; runs are made below it."""

    def __init__(self, root: Path, *, steps: int = 6) -> None:
        self.root = root
        self.steps = steps
        self.count = 0
        os.environ["LRFT_CACHE"] = str(root / "cache")
        made = self.call(lambda: _make(root))
        if made.code:
            raise RuntimeError(made.text)

    def call(self, action: Callable[[], int | None], uid: int | None = None) -> Outcome:
        return self.child(action, uid).wait()

    def child(self, action: Callable[[], int | None], uid: int | None = None) -> Child:
        self.count += 1
        return Child(action, self.root / f"output-{self.count % 8}.txt", uid)

    def start(self, *words: str, uid: int | None = None, before: Callable[[], None] = lambda: None) -> Child:
        """An lrft command in a child; `before` runs in the child first."""

        def command() -> int:
            from lrft.cli.main import run_command

            before()
            return run_command(list(words))

        return self.child(command, uid)

    def run(self, *words: str, uid: int | None = None) -> Outcome:
        return self.start(*words, uid=uid).wait()

    def training(self, run: Path, *more: str) -> tuple[str, ...]:
        """The words of the command that trains into `run`."""
        recipe = str(self.root / "recipe.yaml")
        return ("train", recipe, f"output_dir={run}", f"training.max_steps={self.steps}", *KEYS, *more)


def _make(root: Path) -> None:
    import runs

    runs.Place.make(root)


# --- what a folder holds --------------------------------------------------------------------------


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state(run: Path) -> dict[str, Any]:
    """Everything of a finished run that must not depend on what it went through."""
    import runs

    held: dict[str, Any] = {
        "names": sorted(path.name for path in run.iterdir()),
        "checkpoints": sorted(path.name for path in (run / "checkpoints").iterdir()),
        "steps": runs.records(run),
        "evaluations": runs.records(run, "eval"),
    }
    for name in ("last", "best"):
        held[name] = str((run / name).readlink())
        checkpoint = (run / name).resolve().parent
        for path in sorted(checkpoint.rglob("*")):
            if path.is_file() and path.name not in TIMED:
                held[f"{name}: {path.relative_to(checkpoint)}"] = digest(path)
    return held


def differing(a: dict[str, Any], b: dict[str, Any]) -> str:
    """The names under which two states differ, with the difference where it is short."""
    found = []
    for key in sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key)):
        x, y = a.get(key), b.get(key)
        both = isinstance(x, list) and isinstance(y, list) and all(isinstance(item, str) for item in x + y)
        found.append(f"{key} {sorted(set(x) ^ set(y))}" if both else key)
    return ", ".join(found)


def snapshot(paths: Iterable[Path]) -> dict[str, tuple[str, int, int]]:
    """(sha256, mode, modification time) of every file at or below `paths`, links not followed."""
    found = {}
    for top in paths:
        for path in [top, *top.rglob("*")] if top.is_dir() else [top]:
            status = path.lstat()
            content = digest(path) if path.is_file() and not path.is_symlink() else ""
            if not path.is_dir():
                found[str(path)] = (content, status.st_mode, status.st_mtime_ns)
    return found


def plant(run: Path) -> list[Path]:
    """Put files into a run's folder and beside it that are not lrft's; some look as if they were."""
    foreign = run / "checkpoints" / "step-000777"
    (foreign / "adapter").mkdir(parents=True)
    (foreign / "adapter" / "adapter_model.safetensors").write_bytes(b"somebody's weights")
    (foreign / "manifest.json").write_text(json.dumps({"run": "another", "step": 777, "files": {}}))
    mine = run / "checkpoints" / "mine"
    mine.mkdir()
    (mine / "best.txt").write_text("the third is the best one")
    beside = run.with_name("beside")
    beside.mkdir(exist_ok=True)
    (beside / "run.json").write_text("{}")
    planted = [foreign, mine, beside, run / "notes.txt", run / ".last.txt", run / "step-000002", run / ".tmp-notes"]
    for path in planted[3:]:
        path.write_text(f"{path.name}: mine")
    return planted


def unplant(planted: Iterable[Path]) -> None:
    for path in planted:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A disk of `size` bytes mounted on `folder`. Raises PermissionError where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.system(f"mount -t tmpfs -o size={size} none '{folder}' 2>/dev/null"):
        raise PermissionError("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        os.system(f"umount -l '{folder}'")


def fill(folder: Path, leave: int) -> Path:
    """A ballast file that leaves about `leave` bytes of the disk of `folder`."""
    ballast = folder / "ballast"
    size = max(shutil.disk_usage(folder).free - leave, 0)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size) if size else None
    return ballast


def versions() -> str:
    import platform

    import safetensors
    import torch
    import transformers
    import yaml

    return (
        f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"safetensors {safetensors.__version__}, PyYAML {yaml.__version__}, {torch.get_num_threads()} thread, "
        f"{os.cpu_count()} cores, {platform.system()} {platform.release()}"
    )

"""Lock files of extensions that torch compiles at the first use, such as DeepSpeed's for CPUs.

Whoever compiles creates the file, keeps it open and removes it at the end (torch.utils.file_baton); all others wait for
as long as it is there, without a word. One who is killed meanwhile leaves it behind.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lrft.errors import LrftError

EXTENSION = "deepspeed_shm_comm"
SECONDS = 300.0
"""how old a lock that no process here holds must be to count as left behind: another machine may share the folder"""


def refuse_left_behind(seconds: float = SECONDS) -> None:
    """Wait while another machine may be compiling. Raises LrftError for a lock that was left behind."""
    for lock in locks():
        told = False
        while (age := age_of(lock)) is not None and not is_open(lock):
            held = f"no process on this machine holds {lock}, which is there while DeepSpeed compiles"
            remove = f"If no other machine is compiling there: rm {lock}"
            if age >= seconds:
                raise LrftError(
                    f"DeepSpeed would wait forever: {held} and is left behind by a run that is killed", remove
                )
            if not told:
                print(f"waiting for up to {seconds - age:.0f} s: {held}. {remove}", file=sys.stderr, flush=True)
                told = True
            time.sleep(min(1.0, seconds - age))


def folder() -> Path:
    """Where torch builds extensions."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or f"{cache}/torch_extensions").expanduser()


def locks() -> Iterator[Path]:
    """Where DeepSpeed's lock may be: in torch's own folder by Python's version and the device."""
    version = f"py{sys.version_info.major}{sys.version_info.minor}"
    roots = [folder()] if os.environ.get("TORCH_EXTENSIONS_DIR") else sorted(folder().glob(f"{version}*"))
    return (root / EXTENSION / "lock" for root in roots)


def left_behind(root: Path) -> list[Path]:
    """The locks of all extensions below `root` that count as left behind."""
    found = sorted(root.rglob("lock")) if root.is_dir() else []
    return [lock for lock in found if lock.is_file() and (age_of(lock) or 0.0) >= SECONDS and not is_open(lock)]


def age_of(lock: Path) -> float | None:
    """In seconds; None where there is none."""
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:
        return None


def is_open(path: Path) -> bool:
    """Whether a process of this machine has the file open, as far as one may look."""
    named = path.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(entry.readlink() == named for entry in (process / "fd").iterdir()):
                return True
        except OSError:  # of somebody else, or ended meanwhile
            continue
    return False

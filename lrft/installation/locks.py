"""Lock files that an interrupted compilation left behind: the next process would wait for them for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path

OLD = 1800.0
"""seconds; no extension of DeepSpeed takes as long to compile"""


def folder() -> Path:
    """Where torch builds extensions."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or "~/.cache/torch_extensions").expanduser()


def stale(root: Path, now: float | None = None) -> list[Path]:
    """Files named `lock` below `root` that are older than `OLD`. now: seconds since the epoch; None is the clock's."""
    now = time.time() if now is None else now
    found = []
    for path in sorted(root.rglob("lock")) if root.is_dir() else []:
        try:
            if path.is_file() and now - path.stat().st_mtime > OLD:
                found.append(path)
        except OSError:
            continue
    return found

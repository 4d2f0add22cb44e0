"""Models that are converted once into folders of safetensors, which are kept in the cache."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path

from lrft.errors import LrftError
from lrft.model.weights import cache_dir, fingerprint
from lrft.utils.files import sync

DEQUANTIZED_FROM = "dequantized_from"
"""fact of a folder that was stored quantised: the format of its codes"""
RECORD = "converted.json"  # written last: a folder that has it is complete


def kept(digest: str, make: Callable[[Path], None], *, where: str, source: str, **facts: str) -> Path:
    """The folder that `make` writes for what `digest` stands for; made now unless it is there and as it was recorded.

    make     writes weights, configuration and tokenizer into the new folder that it is given
    source   name of what is converted, recorded with `facts`
    Raises LrftError when the cache cannot be written, and what `make` raises.
    """
    models = cache_dir() / "models"
    folder, part = models / digest[:16], models / f"{digest[:16]}.part"
    try:
        models.mkdir(parents=True, exist_ok=True)
        with (models / f"{digest[:16]}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds the first one's result
            if not _intact(folder):
                # Whoever holds the lock may remove what an interrupted conversion left behind.
                shutil.rmtree(part, ignore_errors=True)
                shutil.rmtree(folder, ignore_errors=True)
                make(part)
                _record(part, source=source, sha256=digest, **facts)
                part.rename(folder)
    except OSError as error:
        raise LrftError(f"{where}: {source} could not be converted under {models}: {error}") from error
    return folder


def recorded(folder: Path) -> dict[str, str]:
    """The facts of a converted folder; nothing of another."""
    try:
        found = json.loads((folder / RECORD).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _record(folder: Path, **facts: str) -> None:
    facts["fingerprint"] = fingerprint(folder)
    (folder / RECORD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    for path in (*folder.iterdir(), folder):  # on disk before the rename says that it is complete
        sync(path)


def _intact(folder: Path) -> bool:
    """True when `folder` holds a complete conversion whose weights are those that were recorded."""
    try:
        return bool(fingerprint(folder) == recorded(folder)["fingerprint"])
    except (OSError, KeyError, LrftError):
        return False

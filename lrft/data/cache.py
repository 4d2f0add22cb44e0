"""Tokenised rows kept between runs: one folder per key, whole or absent, checked on reading.

<cache>/data/<key>/   train.safetensors, validation.safetensors (if any), report.json, manifest.json
<cache>/data/<key>.lock
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lrft.data.dataset import Rows
from lrft.data.report import DataReport
from lrft.errors import LrftError
from lrft.utils.files import apply_umask, room_for, sha256, sync

# To be raised with every change of reading, rendering, masking or splitting that changes rows, and with each new figure
# of their report: an old entry would go without it.
FORMAT = 7
TRAIN, VALIDATION, REPORT, MANIFEST = "train.safetensors", "validation.safetensors", "report.json", "manifest.json"
# Libraries that decide on ids and renderings.
_LIBRARIES = ("tokenizers", "transformers", "jinja2")


def make_key(parts: dict[str, Any], tokenizer: Any) -> str:
    """sha256 over all that decides on the rows. `parts`: JSON values: data digests, options, template."""
    everything = {
        "format": FORMAT,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        **parts,
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(cache: Path, key: str) -> Iterator[Path]:
    """The folder of `key`, ours alone until the block ends: a second process waits for the first one's rows.

    Raises LrftError when the cache cannot be written.
    """
    folder = cache / "data" / key
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_suffix(".lock").open("w")
    except OSError as error:
        raise LrftError(
            f"{folder.parent}: the cache cannot be written: {error.strerror or error}",
            "Set LRFT_CACHE to another folder, or data.cache: false.",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def load(folder: Path) -> tuple[Rows, Rows | None, DataReport] | None:
    """What `save` wrote; None when there is nothing, or when it is damaged (a flipped bit counts)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if any(sha256(folder / name) != digest for name, digest in manifest.items()):
            return None
        train, validation, report = made(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    report.hit = True
    return train, validation, report


def made(folder: Path) -> tuple[Rows, Rows | None, DataReport]:
    """The train rows, the validation rows and the report that lie in a folder of `save`, mapped and not checked."""
    report = DataReport.from_dict(json.loads((folder / REPORT).read_text()))
    held_out = Rows.load(folder / VALIDATION) if (folder / VALIDATION).exists() else None
    return Rows.load(folder / TRAIN), held_out, report


def save(folder: Path, rows: Rows, held_out: np.ndarray, report: DataReport) -> None:
    """Write beside, fsync, rename. Called with the lock held. held_out: bool (N,), of the validation rows."""
    with room_for(folder):
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:12]}.", dir=folder.parent))
        try:
            rows.save(beside / TRAIN, np.flatnonzero(~held_out))
            if held_out.any():
                rows.save(beside / VALIDATION, np.flatnonzero(held_out))
            (beside / REPORT).write_text(json.dumps(report.to_dict()))
            manifest = {file.name: sha256(file) for file in sorted(beside.iterdir())}
            (beside / MANIFEST).write_text(json.dumps(manifest))
            for file in beside.iterdir():
                apply_umask(file)
                sync(file)
            apply_umask(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

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

from lrft.data.dataset import Rows
from lrft.data.report import DataReport
from lrft.errors import LrftError
from lrft.utils.files import apply_umask, room_for, sha256, sync

# To be raised with every change of reading, rendering, masking or splitting that changes rows, and with each new figure
# of their report: an old entry would go without it.
FORMAT = 7
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
        manifest = json.loads((folder / "manifest.json").read_text())
        if any(sha256(folder / name) != digest for name, digest in manifest.items()):
            return None
        report = DataReport.from_dict(json.loads((folder / "report.json").read_text()))
        validation = folder / "validation.safetensors"
        held_out = Rows.load(validation) if validation.name in manifest else None
        return Rows.load(folder / "train.safetensors"), held_out, report
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def save(folder: Path, train: Rows, validation: Rows | None, report: DataReport) -> None:
    """Write beside, fsync, rename. Called with the lock held."""
    with room_for(folder):
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name[:12]}.", dir=folder.parent))
        try:
            train.save(beside / "train.safetensors")
            if validation is not None:
                validation.save(beside / "validation.safetensors")
            (beside / "report.json").write_text(json.dumps(report.to_dict()))
            manifest = {file.name: sha256(file) for file in sorted(beside.iterdir())}
            (beside / "manifest.json").write_text(json.dumps(manifest))
            for file in beside.iterdir():
                apply_umask(file)
                sync(file)
            apply_umask(beside)
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)

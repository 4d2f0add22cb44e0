"""Data sets of the hub, through the `datasets` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from lrft.data.records import Record, Source, as_object, head
from lrft.errors import DataError
from lrft.utils.hub_connection import unreachable


def hub_source(path: str, split: str) -> Source:
    """The data set `hub:OWNER/NAME` or `hub:OWNER/NAME/CONFIGURATION`. Raises DataError."""
    parts = path.removeprefix("hub:").split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{path}: expected hub:OWNER/NAME, or hub:OWNER/NAME/CONFIGURATION")
    rows = _download(path, "/".join(parts[:2]), parts[2] if len(parts) == 3 else None, split)

    def digest() -> str:
        found = hashlib.sha256()
        for row in rows:
            found.update(json.dumps(row, sort_keys=True, default=str).encode())
        return found.hexdigest()

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, 1):
            yield Record(number, as_object(row), head(row))

    return Source(f"{path}#", "hub", digest, records)


def _download(path: str, name: str, config: str | None, split: str) -> Any:
    if (reason := _unreachable()) is not None:
        raise DataError(
            f"{path}: the hub cannot be reached ({reason})",
            "Give a local file, or set HF_HUB_OFFLINE=1 to use a dataset from the local cache.",
        )
    import datasets

    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(name, config, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{path}, split {split}: {str(error).splitlines()[0] if str(error) else error}") from error


def _unreachable() -> str | None:
    """Why the hub cannot be reached, or None; also None when offline by choice: the cache may hold the data."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    return unreachable()

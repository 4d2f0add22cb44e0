"""Data sets of the hub, through the `datasets` library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from lrft.data.records import Record, Source, head, of_table
from lrft.errors import DataError
from lrft.utils.hub_connection import unreachable
from lrft.utils.slow import verbose


class HubName(NamedTuple):
    """What `hub:OWNER/NAME/CONFIGURATION@REVISION` names; the last two are optional."""

    name: str
    config: str | None
    revision: str | None


def hub_name(path: str) -> HubName:
    """Raises DataError."""
    place, at, revision = path.removeprefix("hub:").partition("@")
    parts = place.split("/")
    if len(parts) not in (2, 3) or not all(parts) or bool(at) != bool(revision):
        raise DataError(
            f"{path}: expected hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION, or either with @REVISION behind it"
        )
    return HubName("/".join(parts[:2]), parts[2] if len(parts) == 3 else None, revision or None)


def hub_source(path: str, split: str) -> Source:
    """The data set that `path` names. Raises DataError."""
    rows = _download(path, hub_name(path), split)

    def digest() -> str:
        found = hashlib.sha256()
        for row in rows:
            found.update(json.dumps(row, sort_keys=True, default=str).encode())
        return found.hexdigest()

    def records() -> Iterator[Record]:
        for number, row in enumerate(rows, 1):
            yield Record(number, of_table(row), head(row))

    return Source(f"{path}#", "hub", digest, records)


def _download(path: str, wanted: HubName, split: str) -> Any:
    if (reason := _unreachable()) is not None:
        raise DataError(
            f"{path}: the hub cannot be reached ({reason})",
            "Give a local file, or set HF_HUB_OFFLINE=1 to use a dataset from the local cache.",
        )
    import datasets

    if not verbose():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(wanted.name, wanted.config, split=split, revision=wanted.revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise DataError(f"{path}, split {split}: {str(error).splitlines()[0] if str(error) else error}") from error


def _unreachable() -> str | None:
    """Why the hub cannot be reached, or None; also None when offline by choice: the cache may hold the data."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    return unreachable()

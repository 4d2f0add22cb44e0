"""Data sets of the hub, through the `datasets` library."""

from __future__ import annotations

import hashlib
import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from lrft.data.records import Record, Source, as_object, head
from lrft.errors import DataError

SECONDS = 5.0


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
    """Why the hub cannot be reached, or None. One connection: the library would retry for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    target = urlsplit(constants.ENDPOINT)
    proxy = urllib.request.getproxies().get(target.scheme)
    if proxy and not urllib.request.proxy_bypass(target.hostname or ""):
        target = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = target.port or (80 if target.scheme == "http" else 443)
    try:
        socket.create_connection((target.hostname or "", port), timeout=SECONDS).close()
    except OSError as error:
        return f"{target.hostname}: {error.strerror or error}"
    return None

"""metrics.jsonl and log.txt: files that grow by whole lines while a run goes on, and survive its death."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from lrft.utils.files import room_for

LOSS_OF = "loss of "
"""before the name of a source, in the name of the figure that is its training loss"""
ROOM = 1_000_000  # bytes asked for when the disk is full: what the lines of a long run take


class LineFile:
    """A file that grows by whole lines, each handed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def add(self, line: str) -> None:
        """Raises LrftError on a full disk; the file then ends where it ended before."""
        data = (line + "\n").encode("utf-8", "backslashreplace")
        with room_for(self.path, max(len(data), ROOM)):
            if self._file is None:
                self._file = self.path.open("a+b", buffering=0)
            _append(self._file, data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _append(file: BinaryIO, data: bytes) -> None:
    """Write all of `data` at the end of an unbuffered file, or nothing of it."""
    end = file.seek(0, os.SEEK_END)
    if end:
        file.seek(end - 1)
        if file.read(1) != b"\n":
            data = b"\n" + data  # a kill left half a line: it stays alone on its line
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of a metrics.jsonl, and the number of lines that are none (a kill can tear the last one).

    No file is no records. Each record has "kind" ("step" or "eval") and "step" (int).
    """
    lines = [line for line in path.read_bytes().split(b"\n") if line.strip()] if path.exists() else []
    records = [record for line in lines if (record := _parse(line)) is not None]
    return records, len(lines) - len(records)


def of_kind(records: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The steps ("step") or the evaluations ("eval")."""
    return [record for record in records if record.get("kind") == kind]


def values(records: Sequence[dict[str, Any]], key: str) -> list[float]:
    """What the records have under `key`; those that have nothing there are left out."""
    return [record[key] for record in records if record.get(key) is not None]


def by_source(steps: Sequence[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """source -> (step, its training loss in that step) of the steps that have one; empty for a single source."""
    found: dict[str, list[tuple[int, float]]] = {}
    for record in steps:
        for name, value in record.get("figures", {}).items():
            if name.startswith(LOSS_OF) and value is not None:
                found.setdefault(name.removeprefix(LOSS_OF), []).append((record["step"], value))
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def json_line(record: Mapping[str, Any]) -> str:
    """`record` as one line of JSON. NaN and infinities become null and are named under "non_finite"."""
    names: list[str] = []

    def clean(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {key: clean(item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item, f"{name}.{index}") for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            names.append(name)
            return None
        return value

    cleaned = clean(record, "")
    return json.dumps({**cleaned, "non_finite": names} if names else cleaned, allow_nan=False)

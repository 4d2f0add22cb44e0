"""Folders that `save_to_disk` of the `datasets` library made: of one data set, or of one for each split."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrft.data.records import Record, Source, head, of_table
from lrft.errors import DataError
from lrft.utils.slow import verbose

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved(folder: Path) -> bool:
    return (folder / STATE).is_file() or is_saved_splits(folder)


def is_saved_splits(folder: Path) -> bool:
    return (folder / SPLITS).is_file()


def saved_source(folder: Path, split: str) -> Source:
    """The data set in `folder`, or its split of this name. Raises DataError."""
    if is_saved_splits(folder):
        folder = _split(folder, split)

    def digest() -> str:
        found = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            found.update(path.name.encode())
            with path.open("rb") as file:
                found.update(hashlib.file_digest(file, "sha256").digest())
        return found.hexdigest()

    def records() -> Iterator[Record]:
        for number, row in enumerate(_load(folder), 1):
            yield Record(number, of_table(row), head(row))

    return Source(f"{folder}#", "save_to_disk", digest, records)


def _split(folder: Path, split: str) -> Path:
    names = _names(folder)
    if split not in names:
        raise DataError(
            f"{folder}: no split {split}; there are {', '.join(names)}",
            f"Use one of them, such as {folder / names[0]}" if names else None,
        )
    return folder / split


def _names(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / SPLITS).read_text())["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / SPLITS}: is not a list of dataset splits") from error


def _load(folder: Path) -> Any:
    import datasets

    if not verbose():
        datasets.disable_progress_bars()
    try:
        return datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: not readable as a data set of save_to_disk: {error}") from error

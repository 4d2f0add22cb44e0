"""Data files of an evaluation with what is said of each: `--data NAME=FILE --format NAME=alpaca`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lrft.errors import UsageError, nearest

OWN = "validation"
"""name of the run's own validation rows"""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)


@dataclass(frozen=True)
class DataFile:
    """path: None for the run's own validation rows. reading: keys of an entry of data.train, as YAML."""

    name: str
    path: str | None
    reading: Mapping[str, str] = field(default_factory=dict)


def data_files(given: Sequence[str], reading: Mapping[str, Sequence[str]]) -> list[DataFile]:
    """The files of --data, in their order, or the run's own rows where there are none.

    given: FILE or NAME=FILE; a file's own name is its stem. reading: by key of a data entry, values for all files, or
    NAME=VALUE for one. Raises UsageError for a name that two files have, or that none has.
    """
    if not given:
        if asked := next((key for key, values in reading.items() if values), None):
            option = asked.replace("_", "-")
            raise UsageError(f"--{option} requires --data: without it the run's own rows are read as in its recipe")
        return [DataFile(OWN, None)]
    named = [_named(text) for text in given]
    names = [name for name, _ in named]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"two files of --data are named {twice}", f"Name one of them: --data other={twice}.jsonl")
    read_as: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, values in reading.items():
        for name, value in sorted((_said_of(text, names, key) for text in values), key=lambda one: one[0] is not None):
            for each in names if name is None else [name]:
                read_as[each][key] = value
    return [DataFile(name, path, read_as[name]) for name, path in named]


def _named(text: str) -> tuple[str, str]:
    """(name, path). A file that has an equals sign in its own name is that file."""
    match = _NAMED.fullmatch(text)
    if match and not Path(text).exists():
        return match[1], match[2]
    return Path(text.rstrip("/")).name.split(".")[0] or text, text


def _said_of(text: str, names: Sequence[str], key: str) -> tuple[str | None, str]:
    """(the file's name or None for all, the value)."""
    match = _NAMED.fullmatch(text)
    if match is None:
        return None, text
    if match[1] not in names:
        close = nearest(match[1], names)
        hint = f"Did you mean {close[0]}?" if close else f"Files here: {', '.join(names)}"
        raise UsageError(f"--{key.replace('_', '-')}: no file of --data is named {match[1]}", hint)
    return match[1], match[2]

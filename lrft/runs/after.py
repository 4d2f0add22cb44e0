"""What commands found out about a finished run, kept in its folder for its page: RUN/after/merge.json and so on.

Each file is a list, oldest first, of {"at": UTC time, "command": as typed, "exit code", "failed": message of a check
that did not hold or "", "found": figures by name}.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrft.errors import CheckFailed
from lrft.utils import files

FOLDER = "after"
KEPT = 20  # of each command, the newest


@contextmanager
def noted(run: Path | None, name: str, command: str) -> Iterator[dict[str, Any]]:
    """Keeps what is put into the yielded dict, and the check that ended the block when one did. What could not be done
    at all, such as a misspelt file, is not kept.

    run: None, or a folder that may not be written to: nothing is kept.
    """
    found: dict[str, Any] = {}
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry: dict[str, Any] = {"at": began, "command": command, "exit code": 0, "failed": "", "found": found}
    try:
        yield found
    except CheckFailed as error:
        entry |= {"exit code": error.exit_code, "failed": error.message}
        add(run, name, entry)
        raise
    add(run, name, entry)


def add(run: Path | None, name: str, entry: dict[str, Any]) -> None:
    if run is None or not os.access(run, os.W_OK):
        return
    path = run / FOLDER / f"{name}.json"
    with files.room_for(path):
        path.parent.mkdir(exist_ok=True)
    files.write_json(path, [*entries(path), entry][-KEPT:])


def entries(path: Path) -> list[dict[str, Any]]:
    """What one file holds; nothing where it is missing or broken, as it is told again by the command."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [one for one in held if isinstance(one, dict)] if isinstance(held, list) else []


def of_run(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The entries of each command, by its name."""
    found = {path.stem: entries(path) for path in sorted((run / FOLDER).glob("*.json"))}
    return {name: held for name, held in found.items() if held}

"""Answers on their way to a file: kept as they come, so that an interrupted command continues where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.errors import UsageError
from lrft.runs.metrics import LineFile
from lrft.utils import files


class AnswerFile:
    """OUT.partial: a line that says what is answered and how, then one for each answer in the order they came.

    OUT appears whole, its rows in the order of the data.
    """

    def __init__(self, out: Path, asked: Mapping[str, Any]) -> None:
        """asked: all that decides on the answers, as JSON. Raises UsageError as `refuse_taken`, and when answers to
        something else were begun."""
        refuse_taken(out)
        self.out, self._partial = out, out.with_name(f"{out.name}.partial")
        self.done: dict[int, dict[str, Any]] = {}
        """row -> its answer, of an earlier command"""
        lines = _lines(self._partial)
        self._lines = LineFile(self._partial)
        if not lines:
            self._lines.add(json.dumps({"asked": asked}))
        elif lines[0] != {"asked": asked}:
            raise UsageError(
                f"{self._partial} holds answers to other rows or with other settings ({_differing(lines[0], asked)})",
                "Repeat the command that wrote it to finish it, or remove it.",
            )
        else:
            self.done = {line["row"]: line for line in lines[1:]}

    def add(self, row: int, answer: Mapping[str, Any]) -> None:
        """Keep an answer."""
        self.done[row] = {"row": row, **answer}
        self._lines.add(json.dumps(self.done[row]))

    def close(self) -> None:
        self._lines.close()

    def finish(self, rows: list[dict[str, Any]]) -> None:
        """Write OUT: each of `rows` with its answer. Every one has been answered."""
        written = ({"row": n, "input": row, **self.done[n]} for n, row in enumerate(rows, 1))
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in written)
        self.close()
        files.write_bytes(self.out, text.encode("utf-8", "backslashreplace"))
        self._partial.unlink()


def refuse_taken(out: Path) -> None:
    """Raises UsageError when OUT exists, or its folder does not."""
    if out.exists():
        raise UsageError(f"{out} exists", "Choose another file with -o.")
    if not out.parent.is_dir():
        raise UsageError(f"{out.parent} is not a folder")


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines; one that a kill has torn is left out."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def _differing(line: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    before = line.get("asked", {})
    return ", ".join(key for key in asked if not isinstance(before, dict) or before.get(key) != asked[key]) or "format"

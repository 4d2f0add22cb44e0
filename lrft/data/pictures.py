"""Rows that hold more than text. Models that also see or hear are trained on text alone here, so these are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrft.data.records import BadRow

COLUMNS = ("image", "images", "video", "videos", "audio", "audios")
TURNS = ("messages", "conversations", "prompt", "completion")
WORDS = ("image", "video", "audio")


def refuse(record: Mapping[str, Any]) -> None:
    """Raises BadRow for a column of pictures, sound or films that is filled, or a part of a turn that is one."""
    for column in COLUMNS:
        if record.get(column) not in (None, "", [], {}):
            raise _bad(column, column)
    for column in TURNS:
        for place, kind in _parts(record.get(column)):
            if word := next((word for word in WORDS if word in kind), None):
                raise _bad(word, f"{column}{place}")


def _bad(what: str, field: str) -> BadRow:
    text = f"holds {what}: only text is trained, also of models that see or hear. Leave such rows or columns out"
    return BadRow("more than text", text, field)


def _parts(turns: Any) -> Iterator[tuple[str, str]]:
    """(place, type) of each part of each turn whose content is a list of parts."""
    for i, turn in enumerate(turns if isinstance(turns, list) else []):
        for what in ("content", "value"):
            parts = turn.get(what) if isinstance(turn, dict) else None
            for j, part in enumerate(parts if isinstance(parts, list) else []):
                if isinstance(part, dict) and isinstance(part.get("type"), str):
                    yield f"[{i}].{what}[{j}]", part["type"]

"""Markdown tables and escaping."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lrft.utils.text import visible


def escape(text: str) -> str:
    """`text` as the same characters in Markdown, also within a table: no markup, no HTML, no line end."""
    lines = [visible(line) for line in text.splitlines()]
    plain = "<br>".join(re.sub(r"([\\`*_{}\[\]|~#$!])", r"\\\1", _entities(line)) for line in lines)
    return re.sub(r"^(\d*)([-+.)])(?=\s)", r"\1\\\2", plain.strip())  # would start a list


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows))


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

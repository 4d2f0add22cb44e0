"""A table of Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], lines: Sequence[Sequence[str]], words: int = 3) -> str:
    """words: columns from the left that hold words; the others hold numbers."""
    marks = ["---" if at < words else "---:" for at in range(len(head))]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, marks, *lines]) + "\n"

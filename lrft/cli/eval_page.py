"""Where `lrft eval` writes its pages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.errors import UsageError
from lrft.utils import files


def page_at(out: Path | None, run: Path | None, name: str) -> Path | None:
    """Where the page goes; None for nowhere: there is no run that may be written to, and no -o. Raises UsageError."""
    if out is not None:
        if out.is_dir() or not out.parent.is_dir() or out.suffix != ".html":
            raise UsageError(f"{out} cannot be written", "Choose a file that ends in .html, in an existing folder.")
        return out
    return None if run is None or not os.access(run, os.W_OK) else run / "eval" / f"{name}.html"


def write(made: str, facts: Mapping[str, Any], page: Path | None) -> list[Path]:
    """The page, and the same as JSON beside it."""
    if page is None:
        return []
    with files.room_for(page):
        page.parent.mkdir(exist_ok=True)
        files.write_text(page, made)
        files.write_json(page.with_suffix(".json"), facts)
    return [page, page.with_suffix(".json")]

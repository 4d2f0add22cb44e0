"""compare.json, compare.csv, compare.md and compare.html: the same figures four times."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrft.compare import html
from lrft.compare.columns import NOTHING, Facts, failed_table, grid_table, main_table, measured_words, notes
from lrft.utils import files
from lrft.utils.markdown import escape, table
from lrft.utils.text import aligned

NAMES = ("compare.md", "compare.csv", "compare.json", "compare.html")


def write(found: Facts, folder: Path) -> list[Path]:
    """All four into `folder`."""
    texts = (markdown(found), comma_separated(found), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, (*texts, html.render(found)), strict=True):
        files.write_text(path, text)
    return paths


def markdown(found: Facts) -> str:
    """compare.md."""
    measured = measured_words(found)
    parts = [f"# Comparison by {found['metric']}", *([f"{measured}."] if measured else [])]
    parts.append(escaped_table(*main_table(found)))
    if found["warnings"]:
        parts.append("\n".join(f"- **{escape(warning)}**" for warning in found["warnings"]))
    parts += [*map(escape, notes(found)), "## All grid points", escaped_table(*grid_table(found))]
    if found["failed"]:
        parts += ["## Runs that failed", escaped_table(*failed_table(found))]
    folders = [[row["run"], row["best_folder"] or NOTHING] for row in found["methods"]]
    parts += ["## Best runs", escaped_table(["run", "folder"], folders)]
    return "\n\n".join(parts) + "\n"


def escaped_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table([escape(cell) for cell in head], [[escape(cell) for cell in row] for row in rows])


def comma_separated(found: Facts) -> str:
    """compare.csv: a line for each run with the figures of compare.json, lists and maps as JSON."""
    out = io.StringIO()
    names = list(found["methods"][0])
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    for row in found["methods"]:
        writer.writerow([cell(row[name]) for name in names])
    return out.getvalue()


def cell(value: Any) -> str:
    """Text as it is, nothing as nothing, everything else as JSON."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def screen(found: Facts) -> list[str]:
    """The table in plain text, its columns aligned; those that take much room are left to the pages."""
    head, rows = main_table(found)
    shown = [at for at, title in enumerate(head) if title not in ("exports to", "training, s")]
    measured = measured_words(found)
    table = aligned([[line[at] for at in shown] for line in (head, *rows)], figures=False)
    return [*table, *([measured] if measured else [])]

"""compare.json, compare.csv, compare.md and compare.html: the same figures four times."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrft import files
from lrft.compare import html
from lrft.compare.columns import NOTHING, Facts, columns, grid_cells, notes
from lrft.runreport import escape

NAMES = ("compare.md", "compare.csv", "compare.json", "compare.html")


def write(found: Facts, folder: Path) -> list[Path]:
    """All four into `folder`."""
    texts = (markdown(found), comma_separated(found), json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    paths = [folder / name for name in NAMES]
    for path, text in zip(paths, (*texts, html.page(found)), strict=True):
        files.write_text(path, text)
    return paths


def markdown(found: Facts) -> str:
    """compare.md."""
    shape = columns(found)
    parts = [
        f"# Comparison by {found['metric']}",
        table([title for title, _ in shape], [[text(row) for _, text in shape] for row in found["methods"]]),
    ]
    if found["warnings"]:
        parts.append("\n".join(f"- **{escape(warning)}**" for warning in found["warnings"]))
    parts += [*map(escape, notes(found)), "## Every point of the grid", grid_table(found)]
    if found["failed"]:
        rows = [[one["run"], str(one["exit"]), one["said"], one["log"]] for one in found["failed"]]
        parts += ["## Runs that failed", table(["run", "exit code", "last words", "log"], rows)]
    folders = [[row["run"], row["best_folder"] or NOTHING] for row in found["methods"]]
    parts += ["## Best runs", table(["run", "folder"], folders)]
    return "\n\n".join(parts) + "\n"


def grid_table(found: Facts) -> str:
    seeds = [str(seed) for seed in found["seeds"]]
    rows = [grid_cells(point, seeds) for point in found["grid"]]
    return table(["run", "point", "mean", *(f"seed {seed}" for seed in seeds)], rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [[escape(cell) for cell in line] for line in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


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
    shape = [(title, text) for title, text in columns(found) if title not in ("becomes", "training, s")]
    lines = [[title for title, _ in shape], *([text(row) for _, text in shape] for row in found["methods"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(shape))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]

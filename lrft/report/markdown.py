"""report.md and loss.png of a run folder, from its run.json and metrics.jsonl; and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lrft.report import sections
from lrft.report.loss_plot import loss_picture
from lrft.report.sections import (
    Block,
    Cell,
    Points,
    Section,
    Table,
    evaluations,
    pace,
    recorded,
    samples,
    summary,
    training_by_source,
    verdict,
)
from lrft.runs.metrics import read_metrics
from lrft.utils.files import write_bytes, write_text
from lrft.utils.markdown import escape, table


def write_report(run_dir: Path) -> Path:
    """Writes report.md and loss.png into a run folder; returns the path of report.md.

    Raises CheckFailed when run.json is missing or broken, LrftError when the disk is full.
    """
    run = sections.read_run(run_dir)
    records, unreadable = read_metrics(run_dir / "metrics.jsonl")
    write_bytes(run_dir / "loss.png", loss_picture(records))
    write_text(run_dir / "report.md", _markdown(run, records, unreadable, sections.commands_after(run_dir)))
    return run_dir / "report.md"


def _markdown(
    run: Mapping[str, Any], records: Sequence[dict[str, Any]], unreadable: int, after: Sequence[Section]
) -> str:
    sections = [
        *after,
        *recorded(run),
        pace(records, unreadable),
        *training_by_source(records),
        *evaluations(records),
        *samples(records),
    ]
    blocks = [f"# {escape(str(run.get('title', 'Run')))}"]
    if worse := verdict(run):
        blocks.append(f"**{escape(worse)}**")
    blocks += [*_block(summary(run, records)), "![Losses and learning rate](loss.png)"]
    for section in sections:
        blocks += [f"## {escape(section.name)}", *(text for block in section.blocks for text in _block(block))]
    return "\n\n".join(blocks) + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        if block.title:
            yield f"**{escape(block.title)}**"
        yield table([escape(name) for name in block.head], [[_cell(cell) for cell in row] for row in block.rows])
    elif isinstance(block, Points):
        yield "\n".join(f"- {escape(item)}" for item in block.items)
    else:
        yield escape(block.text)


def _cell(cell: Cell) -> str:
    return " ".join([*([escape(cell.text)] if cell.text else []), *([f"*{cell.remark}*"] if cell.remark else [])])

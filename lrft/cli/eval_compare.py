"""`lrft eval --compare` and `--judge`: two models on the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrft.cli.arguments import adapter_in, tell_choice, typed
from lrft.cli.eval_page import page_at, write
from lrft.utils.text import Row, count

if TYPE_CHECKING:
    from lrft.cli.eval_judge import Judge
    from lrft.judging.data_files import DataFile
    from lrft.judging.side_by_side import Settings
    from lrft.tracking.console import Reporter


def compare_two(
    first: str,
    second: str,
    files: Sequence[DataFile],
    settings: Settings,
    judge: Judge | None,
    reporter: Reporter,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure both, let a judge choose when there is one, and write the table, the page and its JSON."""
    from lrft.cli.eval import telling
    from lrft.judging.side_by_side import compare
    from lrft.judging.side_page import side_page
    from lrft.runs.after import noted
    from lrft.runs.locate import run_of

    adapter = adapter_in(first)
    run = None if adapter is None else run_of(adapter)
    if adapter is not None:
        tell_choice(Path(first), adapter)
    page = page_at(out, run, f"compare-{name_of(second)}" if judge is None else f"judge-{name_of(second)}")

    def told(what: str, rows: int) -> Callable[[int], None]:
        reporter.line(f"measuring {what}: {count(rows, 'row')}")
        return telling(reporter, rows)

    with noted(run, "eval", typed()) as kept:
        facts = compare(first, second, files, settings, told)
        if judge is not None:
            from lrft.cli.eval_judge import judged

            facts = judged(facts, judge, page, reporter)
        kept |= {key: "; ".join(words) for key, words in summary(facts)}
    written = write(side_page(facts), facts, page)
    if as_json:
        print(json.dumps(facts, indent=1))
    else:
        reporter.table([*table(facts), *([("written", "   ".join(map(str, written)))] if written else [])])


def name_of(target: str) -> str:
    """A part of a file's name."""
    name = Path(target).name or "model"
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)


def figure_words(facts: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(figure, words) of one file."""
    from lrft.judging.side_page import lines

    return [
        (name, [f"{a}, {facts['second']} {b}", f"difference {difference} ({interval})", f"told apart: {told}"])
        for name, a, b, difference, interval, told in lines(found)
    ]


def summary(facts: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, words) of what is kept beside the run."""
    from lrft.judging.side_page import remarks

    made = []
    for name, found in facts["data"].items():
        made.append((f"{name}: rows", list(remarks(found))))
        made += [(f"{name}: {figure}", words) for figure, words in figure_words(facts, found)]
        if "judge" in found:
            made.append((f"{name}: judge", list(found["judge"]["said"])))
    return made


def table(facts: Mapping[str, Any]) -> list[Row]:
    """The lines for a terminal."""
    from lrft.judging.side_page import remarks, tally

    rows: list[Row] = [("compared", [f"{facts['first']} with {facts['second']}"])]
    for name, found in facts["data"].items():
        rows += [(name, list(remarks(found))), *figure_words(facts, found)]
        if found["answers"]:
            rows.append(("answers", tally(found["answers"], facts["first"], facts["second"])))
        if "judge" in found:
            rows.append(("judge", list(found["judge"]["said"])))
    return rows

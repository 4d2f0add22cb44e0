"""`lrft eval --tasks`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.cli.arguments import adapter_in, loading, tell_choice, typed
from lrft.cli.eval_page import page_at, write
from lrft.errors import UsageError
from lrft.utils.text import Row


def run_tasks(
    target: str,
    tasks: str,
    base: str | None,
    num_fewshot: int | None,
    chat_template: bool,
    limit: int | None,
    batch_size: int,
    trusted: bool,
    allow_code: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Ask a run, an adapter or a model, and write the table, the page and its JSON."""
    with loading():
        from lrft.judging import harness
        from lrft.judging.task_page import task_page
        from lrft.loading.saved import load_target
        from lrft.runs.after import noted
        from lrft.runs.locate import run_of
        from lrft.tracking.console import Reporter

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks: expected names of tasks, or task files, separated by commas")
    harness.refuse_missing()
    adapter = adapter_in(target)
    run = None if adapter is None else run_of(adapter)
    if adapter is not None:
        tell_choice(Path(target), adapter)
    page = page_at(out, run, "tasks")
    with (
        Reporter(None, quiet=as_json, stream=sys.stderr if as_json else None) as reporter,
        noted(run, "eval", typed()) as kept,
    ):
        found = load_target(target, base, trusted)
        made = harness.run_tasks(
            found,
            names,
            num_fewshot=num_fewshot,
            chat_template=chat_template,
            limit=limit,
            batch_size=batch_size,
            allow_code=allow_code,
        )
        facts = {"target": target, **made}
        kept |= dict(summary(facts))
        written = write(task_page(facts), facts, page)
        if as_json:
            print(json.dumps(facts, indent=1))
        else:
            reporter.table([*table(facts), *([("written", "   ".join(map(str, written)))] if written else [])])


def summary(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(task: metric, words) of every figure: what is kept beside the run."""
    from lrft.judging.task_page import lines, remarks

    figures = [
        (f"{task}: {metric}", f"{value} ± {error}, {rows} rows, {shots} examples")
        for task, metric, value, error, rows, shots in lines(facts)
    ]
    return [*figures, ("tasks", "; ".join(remarks(facts)))]


def table(facts: Mapping[str, Any]) -> list[Row]:
    """The lines for a terminal."""
    from lrft.judging.task_page import lines, remarks

    rows: list[Row] = [("asked", [facts["target"], *remarks(facts)])]
    for task, metric, value, error, n, shots in lines(facts):
        rows.append((task, [f"{metric}   {value} ± {error}", f"{n} rows, {shots} examples"]))
    return rows

"""`lrft compare`: one recipe, several methods."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson, as_written, loading, one_of
from lrft.errors import UsageError


def compare(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="FILE", help="Comparison file (runs, grid, seeds); with --suggest a recipe."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs trained in parallel.")] = 1,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List the runs with rank, trainable parameters and estimated time; train nothing."
        ),
    ] = False,
    propose: Annotated[
        int,
        typer.Option(min=0, metavar="N", help="Then try N maps of ranks by block, predicted from finished ones."),
    ] = 0,
    suggest: Annotated[
        str | None,
        typer.Option(metavar="GOAL", help="Methods to try for quality, memory, speed, forgetting or serving."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one recipe with several methods, at matched trainable parameters, and compare them.

    Every method is trained at each point of a grid and with each seed, as an ordinary run; finished runs are kept,
    so the same command continues after an interruption. Results: compare.md, .csv, .json and .html in output_dir.

    \b
    recipe      a recipe file, or its keys, shared by all runs
    runs        by name: a method, a list of methods, or keys
    grid        keys with values: training.epochs: [1, 2]
    seeds       [1, 2, 3]
    budget      parameters (of the baseline), rank, none
    baseline    reference run; default: the first
    metric      of the validation rows: loss, exact_match, ...
    forgetting  general text: its loss before and after
    output_dir  folder of the comparison

    Example: lrft compare compare.yaml --dry-run
    """
    if suggest is not None:
        print(suggestion(suggest, file, as_json))
        return
    if file is None:
        raise UsageError("lrft compare requires a comparison file", "lrft compare --suggest quality prints one.")
    from lrft.compare.config import read

    if propose and dry_run:
        raise UsageError("--propose goes by finished runs, and --dry-run trains none: leave one of them out")
    comparison = read(file)
    with loading():
        from lrft.compare.rank_search import search
        from lrft.compare.run import run

    with as_written(comparison.first_recipe()), answering(as_json) as reporter:
        if propose:
            search(comparison, reporter, jobs=jobs, proposals=propose)
        else:
            run(comparison, reporter, jobs=jobs, dry_run=dry_run)


def suggestion(goal: str, recipe: Path | None, as_json: bool) -> str:
    """Methods for a goal with their figures, and a comparison file of them. Raises UsageError for another goal."""
    from lrft.compare import suggest

    one_of("--suggest", goal, tuple(suggest.GOALS))
    found = suggest.suggest(goal)
    file = suggest.comparison(found, str(recipe or "recipe.yaml"))
    says = suggest.GOALS[goal].says
    if as_json:
        facts = {"goal": goal, "says": says, "caveat": suggest.CAVEAT, "file": file}
        return json.dumps(facts | {"methods": [{**asdict(row), "loss": row.loss} for row in found]}, indent=1)
    about = textwrap.fill(f"{goal}: {says}. Each figure is relative to LoRA's; {suggest.CAVEAT}.", 80)
    return "\n".join([about, "", *suggest.table(found), "", "# compare.yaml", file.rstrip()])

"""`lrft tune`: the learning rate of a recipe, found on its own data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lrft.cli.arguments import as_written, loading, refuse_missing
from lrft.errors import UsageError
from lrft.utils.text import Row


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.")],
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Time for the whole search: 30m, 2h. Default: no limit.")
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(metavar="rank[=4,16]|method=NAME,...", help="Also find the rank or the method; may be repeated."),
    ] = None,
    rates: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Rates to try first: 1e-5,1e-4. Default: seven around the recipe's."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Number of runs trained in parallel.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the search. Default: the recipe's output_dir-tune.")
    ] = None,
    result: Annotated[
        Path | None, typer.Option("-o", help="The tuned recipe. Default: beside the recipe, NAME-tuned.yaml.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON behind the progress.")] = False,
) -> None:
    """Find the learning rate of a recipe by short runs of which the best go on, and write a recipe that has it.

    Every run is an ordinary one; finished runs are kept, so the same command continues after an interruption.

    Example: lrft tune recipe.yaml --budget 30m
    """
    from lrft.tuning.rungs import seconds_of

    seconds = None if budget is None else float(seconds_of(budget))
    if recipe.is_dir():
        raise UsageError(f"{recipe} is a folder", "Give the recipe's file: the result is that file with other values.")
    with loading():
        from lrft.tracking.console import Reporter
        from lrft.tuning.candidates import Space, make_candidates, read_over, read_rates
        from lrft.tuning.outcome import facts_of, tuned_name, words, write_recipe
        from lrft.tuning.page import render
        from lrft.tuning.search import Asked, run
        from lrft.utils import files

    space = Space(recipe)
    tuned = result or tuned_name(recipe)
    with as_written(space.recipe):
        refuse_missing(space.recipe)
        asked = read_over(over or [], space.recipe)
        candidates = make_candidates(space, None if rates is None else read_rates(rates), asked)
        folder = out or Path(f"{space.recipe.output_dir.rstrip('/')}-tune")
        search = run(space, Asked(tuple(candidates), seconds, jobs), folder)
        facts = facts_of(search, recipe)
        write_recipe(search, recipe, tuned)
        files.write_json(folder / "tune.json", facts)
        files.write_text(folder / "tune.html", render(facts))
    if as_json:
        print(json.dumps(facts, indent=1))
        return
    with Reporter(None) as reporter:
        rows: list[Row] = [("best", words(facts)), ("known", facts["remarks"])]
        reporter.table([*rows, ("written", f"{tuned}   {folder / 'tune.html'}   {folder / 'tune.json'}")])

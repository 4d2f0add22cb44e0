"""`lrft plan`: what a run will take."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lrft.cli.arguments import AsJson, Overrides, RecipePath, as_written, loading, read_recipe, refuse_missing


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Divide the run over this many devices of each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines with as many devices each.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Say what a run will take: parameters, memory by part, steps, tokens and time. Loads no weights.

    Example: lrft plan recipe.yaml --devices 8
    """
    loaded = read_recipe(recipe, overrides)
    refuse_missing(loaded)
    with loading():
        from lrft.loading.from_recipe import load_recipe_tokenizer, prepare_data
        from lrft.model.hub import find_model
        from lrft.planning import render
        from lrft.planning.plan import make_plan
        from lrft.tracking.console import Reporter

    with as_written(loaded):
        source = find_model(loaded.model.name, loaded.model.revision, where=loaded.where("model.name"))
        prepared = prepare_data(loaded, source, load_recipe_tokenizer(loaded, source))
        made = make_plan(loaded, source, prepared, devices * nodes, nodes=nodes)
    if as_json:
        print(json.dumps(render.to_dict(made), indent=1))
        return
    with Reporter(None) as reporter:
        reporter.table(render.table_rows(made, loaded))

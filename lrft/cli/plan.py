"""`lrft plan`: estimate a run."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lrft.cli.arguments import AsJson, Overrides, RecipePath, as_written, loading, read_recipe, refuse_missing


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Number of devices per node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Number of nodes.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Estimate a run: parameters, memory, steps, tokens and time. Loads no weights.

    Example: lrft plan recipe.yaml --devices 8
    """
    loaded = read_recipe(recipe, overrides)
    refuse_missing(loaded)
    with loading():
        from lrft.loading.from_recipe import find_base, load_data
        from lrft.loading.no_effect import refuse_without_effect
        from lrft.loading.others import find_others
        from lrft.planning import render
        from lrft.planning.plan import make_plan
        from lrft.tracking.console import Reporter

    with as_written(loaded):
        source = find_base(loaded)
        tokenizer, prepared = load_data(loaded, source)
        refuse_without_effect(loaded, prepared)
        others = find_others(loaded, source, tokenizer, prepared.train)
        made = make_plan(loaded, source, prepared, devices * nodes, nodes=nodes, others=others)
    if as_json:
        print(json.dumps(render.to_dict(made), indent=1))
        return
    with Reporter(None) as reporter:
        reporter.table(render.table_rows(made, loaded))

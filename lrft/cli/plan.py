"""`lrft plan`."""

from __future__ import annotations

import json

from lrft.loading.from_recipe import find_base, load_data
from lrft.loading.no_effect import refuse_without_effect
from lrft.planning import render as plan_render
from lrft.planning.plan import make_plan
from lrft.recipe import Recipe
from lrft.tracking.console import Reporter


def plan(recipe: Recipe, *, devices: int, nodes: int, as_json: bool) -> None:
    """`lrft plan` for `devices` on each of `nodes`."""
    source = find_base(recipe)
    _, prepared = load_data(recipe, source)
    refuse_without_effect(recipe, prepared)
    made = make_plan(recipe, source, prepared, devices * nodes, nodes=nodes)
    if as_json:
        print(json.dumps(plan_render.to_dict(made), indent=1))
        return
    with Reporter(None) as reporter:
        reporter.table(plan_render.table_rows(made, recipe))

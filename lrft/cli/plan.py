"""`lrft plan`."""

from __future__ import annotations

import json

from lrft.loading.from_recipe import load_recipe_tokenizer, prepare_data
from lrft.model.hub import find_model
from lrft.planning import render as plan_render
from lrft.planning.plan import make_plan
from lrft.recipe import Recipe
from lrft.tracking.console import Reporter


def plan(recipe: Recipe, *, devices: int, nodes: int, as_json: bool) -> None:
    """`lrft plan` for `devices` on each of `nodes`."""
    source = find_model(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    prepared = prepare_data(recipe, source, load_recipe_tokenizer(recipe, source))
    made = make_plan(recipe, source, prepared, devices * nodes, nodes=nodes)
    if as_json:
        print(json.dumps(plan_render.to_dict(made), indent=1))
        return
    with Reporter(None) as reporter:
        reporter.table(plan_render.table_rows(made, recipe))

"""`lrft preview`."""

from __future__ import annotations

from rich.console import Console

from lrft.errors import UsageError
from lrft.loading.from_recipe import load_recipe_tokenizer, prepare_data
from lrft.model.hub import find_model
from lrft.recipe import Recipe


def preview(recipe: Recipe, *, n: int, split: str) -> None:
    """`lrft preview`."""
    from lrft.data.preview import render

    source = find_model(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))
    tokenizer = load_recipe_tokenizer(recipe, source)
    prepared = prepare_data(recipe, source, tokenizer)
    rows = prepared.train if split == "train" else prepared.validation
    if rows is None:
        raise UsageError("this recipe holds no validation rows out (data.validation: none)")
    console = Console()
    colour = console.is_terminal and not console.no_color
    console.print(render(rows, prepared.report, tokenizer, n=n, colour=colour), soft_wrap=True)

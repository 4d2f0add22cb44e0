"""`lrft preview`: rows as the model will see them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lrft.cli.arguments import AsJson, Overrides, RecipePath, as_written, loading, one_of, read_recipe
from lrft.errors import UsageError

SPLITS = ("train", "validation")


def preview(
    recipe: RecipePath,
    overrides: Overrides = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of rows to show.")] = 3,
    split: Annotated[str, typer.Option(help="train or validation.")] = "train",
    as_json: AsJson = False,
) -> None:
    """Show rows as the model sees them, with trained tokens coloured, and the data counts.

    Example: lrft preview recipe.yaml -n 5
    """
    one_of("--split", split, SPLITS)
    loaded = read_recipe(recipe, overrides)
    with loading():
        from rich.console import Console

        from lrft.data.preview import render, to_dict
        from lrft.loading.from_recipe import find_base, load_data

    with as_written(loaded):
        source = find_base(loaded)
        tokenizer, prepared = load_data(loaded, source)
    rows = prepared.train if split == "train" else prepared.validation
    if rows is None:
        raise UsageError("this recipe has no validation rows (data.validation: none)")
    if as_json:
        print(json.dumps(to_dict(rows, prepared.report, tokenizer, n=n), indent=1))
        return
    console = Console()
    colour = console.is_terminal and not console.no_color
    console.print(render(rows, prepared.report, tokenizer, n=n, colour=colour), soft_wrap=True)

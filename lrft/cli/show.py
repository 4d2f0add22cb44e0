"""`lrft show`: the resolved recipe."""

from __future__ import annotations

import json

import typer

from lrft.cli.arguments import AsJson, Overrides, RecipePath, read_recipe


def show(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Print the resolved recipe: every key with its value and origin.

    Example: lrft show recipe.yaml training.epochs=1
    """
    loaded = read_recipe(recipe, overrides)
    from lrft import recipe as recipes

    if as_json:
        typer.echo(json.dumps(recipes.plain(loaded), indent=1))
    else:
        typer.echo(recipes.resolved(loaded, {}), nl=False)

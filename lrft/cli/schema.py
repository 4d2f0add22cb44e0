"""`lrft schema`: the JSON Schema of recipes, or one key explained."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    key: Annotated[str | None, typer.Argument(help="Explain one key, such as adapter.rank.")] = None,
) -> None:
    """Explain one key of a recipe, or print the JSON Schema of recipes for editors.

    Example: lrft schema adapter.rank
    """
    from lrft import recipe as recipes

    typer.echo(recipes.describe(key) if key else json.dumps(recipes.json_schema(), indent=1))

"""`lrft schema`: the JSON Schema of recipes or comparisons, or one key explained."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from lrft.errors import UsageError


def schema(
    key: Annotated[str | None, typer.Argument(help="Explain one key, such as adapter.rank.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="The schema of comparison files instead.")] = False,
) -> None:
    """Explain one key of a recipe, or print the JSON Schema of recipes for editors.

    Example: lrft schema adapter.rank
    """
    from lrft import recipe as recipes

    if compare:
        if key is not None:
            raise UsageError("--compare prints a whole schema: name no key with it")
        from lrft.compare import json_schema as of_comparisons

        typer.echo(json.dumps(of_comparisons.json_schema(), indent=1))
        return
    typer.echo(recipes.describe(key) if key else json.dumps(recipes.json_schema(), indent=1))

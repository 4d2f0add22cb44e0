"""`lrft methods`: list methods, show one, or count their trainable parameters for a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.arguments import AsJson, as_written, loading, read_recipe
from lrft.errors import RecipeError, UsageError
from lrft.utils.text import amount

if TYPE_CHECKING:
    from lrft.recipe import Recipe


def methods(
    action: Annotated[str | None, typer.Argument(metavar="show")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    kind: Annotated[str | None, typer.Option(help="Show only methods of this kind.")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="Count each method's trainable parameters for this recipe's model, target modules and rank."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the adapter methods, or show one: its equation, options and conflicts.

    Example: lrft methods show pissa
    """
    if recipe is None:
        from lrft.cli.method_list import render

        width = shutil.get_terminal_size().columns
        typer.echo(render(action, name, kind=kind, as_json=as_json, width=width), nl=False)
        return
    if action is not None:
        raise UsageError("lrft methods show and --recipe cannot be used together")
    loaded = read_recipe(recipe, None)
    with as_written(loaded):
        total, counts, beside = count_parameters(loaded, kind)
    if as_json:
        print(json.dumps(counts, indent=1))
    else:
        print("\n".join([*count_lines(total, counts), *beside]))


def count_parameters(recipe: Recipe, kind: str | None) -> tuple[int, dict[str, int | str], list[str]]:
    """Parameters of the base; what would be trained with each method in the place of the recipe's own, a number, or why
    the method is not applicable; lines about what is trained beside the adapters, which the numbers include."""
    with loading():
        from lrft import registry
        from lrft.adapters import beside, compose
        from lrft.adapters.attach import count_trained, select_sites
        from lrft.adapters.reach import uncalled
        from lrft.cli.method_list import of_kind
        from lrft.loading.from_recipe import find_base, skeleton_for, tokens_for

    source = find_base(recipe)
    skeleton, tokens = skeleton_for(recipe, source), tokens_for(recipe, source)
    passed_over = uncalled(skeleton)
    found: dict[str, int | str] = {}
    lines: list[str] = []
    for card in of_kind(registry.methods(), kind):
        composition = compose.compose([(card.name, {})])
        adapter = recipe.adapter.model_copy(update={} if composition.scale_owner else {"alpha": "auto", "scale": None})
        try:
            sites = select_sites(skeleton, adapter, composition, recipe.where, passed_over)
            names = beside.names_for(skeleton, adapter, [site.name for site in sites], recipe.where, tokens)
            own = beside.count_trained(skeleton, names)
            found[card.name] = count_trained(sites, composition, recipe.where) + own
        except RecipeError as error:
            found[card.name] = error.problems[0].text.removeprefix("adapter: ")
        else:
            lines = [f"each with {own:,} beside the adapters", *names.lines()] if own else []
    return sum(p.numel() for p in skeleton.parameters()), found, lines


def count_lines(total: int, counts: dict[str, int | str]) -> list[str]:
    """A line for each method. total: parameters of the base."""
    width = max(map(len, counts))
    return [
        f"{name:<{width}}  {amount(found, 3):>12}  {found / (total + found):>7.2%}"
        if isinstance(found, int)
        else f"{name:<{width}}  not applicable: {found}"
        for name, found in counts.items()
    ]

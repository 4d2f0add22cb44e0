"""`lrft preview`."""

from __future__ import annotations

from rich.console import Console

from lrft.errors import UsageError
from lrft.loading.from_recipe import find_base, load_data
from lrft.recipe import Recipe


def preview(recipe: Recipe, *, n: int, split: str) -> None:
    """`lrft preview`."""
    from lrft.data.preview import render

    source = find_base(recipe)
    tokenizer, prepared = load_data(recipe, source)
    rows = prepared.train if split == "train" else prepared.validation
    if rows is None:
        raise UsageError(prepared.report.held_out or "this recipe holds no validation rows out (data.validation: none)")
    console = Console()
    colour = console.is_terminal and not console.no_color
    console.print(render(rows, prepared.report, tokenizer, n=n, colour=colour), soft_wrap=True)

"""What a recipe's `after` asks for and this adapter cannot become: refused before the first step."""

from __future__ import annotations

from collections.abc import Iterator

from lrft import registry
from lrft.adapters.attached import Attached
from lrft.adapters.peft_export import peft_folder
from lrft.errors import Problem, RecipeError
from lrft.recipe import Recipe
from lrft.training.state import Adapted


def refuse_impossible(recipe: Recipe, adapted: Adapted) -> None:
    """Raises RecipeError for each command of `after` that would fail for what the adapter is."""
    lacking = dict(lacks(adapted, recipe.model.quantization))
    problems = []
    if recipe.after.merge and "merged" in lacking:
        problems.append(Problem(recipe.where("after.merge"), f"after.merge: {lacking['merged']}"))
    for number, chosen in enumerate(recipe.after.export):
        takes = registry.declared("exporters")[chosen.name].facts.get("takes", "any")
        if takes in lacking:
            where = recipe.where(f"after.export.{number}")
            problems.append(Problem(where, f"after.export: {chosen.name}: {lacking[takes]}"))
    if problems:
        raise RecipeError(problems)


def lacks(adapted: Adapted, quantization: str) -> Iterator[tuple[str, str]]:
    """(what an exporter may take, why the adapter is no such) for each that it is not."""
    attached = adapted.attached
    if not all(adapter.mergeable for adapter in attached.modules.values()):
        names = " + ".join(entry["name"] for entry in attached.methods)
        yield from ((kind, f"{names} cannot be merged") for kind in ("mergeable", "merged"))
    elif adapted.unmergeable:
        yield "merged", f"merging into this base is not possible: {adapted.unmergeable}"
    if reason := no_peft(attached, quantization):
        yield "peft", reason


def no_peft(attached: Attached, quantization: str) -> str:
    """Why stock PEFT cannot represent the adapter; "" when it can."""
    return peft_folder(attached, {"quantization": quantization}).refused

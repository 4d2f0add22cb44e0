"""Packages that a recipe's choices are made of."""

from __future__ import annotations

from lrft import registry
from lrft.errors import MissingError
from lrft.recipe import Recipe


def refuse_missing_packages(recipe: Recipe) -> None:
    """Raises MissingError for all packages that the recipe needs and that are not installed. Imports none of them."""
    t = recipe.training
    found: dict[str, str] = {}
    for key, chosen, kind in (
        ("training.objective", t.objective, "objectives"),
        ("training.optimizer", t.optimizer, "optimizers"),
        *(("evaluation.metrics", metric, "metrics") for metric in recipe.evaluation.metrics),
        *(("logging.report_to", tracker, "trackers") for tracker in recipe.logging.report_to),
    ):
        if package := registry.missing_package(chosen, kind):
            needs = f"{chosen.name} needs the package {package}, which is not installed"
            found.setdefault(package, f"{recipe.where(key)}  {key}: {needs}")
    if found:
        raise MissingError("\n".join(found.values()), f"pip install {' '.join(found)}")

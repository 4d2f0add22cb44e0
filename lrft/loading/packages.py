"""Packages that a recipe's choices are made of."""

from __future__ import annotations

from lrft import registry
from lrft.recipe import Recipe


def refuse_missing_packages(recipe: Recipe) -> None:
    """Raises MissingError for a package that the recipe needs and that is not installed. Imports none of them."""
    t = recipe.training
    for key, chosen, kind in (
        ("training.objective", t.objective, "objectives"),
        ("training.optimizer", t.optimizer, "optimizers"),
        *(("evaluation.metrics", metric, "metrics") for metric in recipe.evaluation.metrics),
        *(("logging.report_to", tracker, "trackers") for tracker in recipe.logging.report_to),
    ):
        registry.refuse_missing(f"{recipe.where(key)}  {key}", chosen, kind)

"""Packages that a recipe's choices are made of, and the hub's token that they ask for."""

from __future__ import annotations

from lrft import registry
from lrft.errors import MissingError
from lrft.model import kernels
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
        *(("after.export", exporter, "exporters") for exporter in recipe.after.export),
    ):
        if package := registry.missing_package(chosen, kind):
            needs = f"{chosen.name} needs the package {package}, which is not installed"
            found.setdefault(package, f"{recipe.where(key)}  {key}: {needs}")
    if t.kernels == kernels.LIGER and not kernels.is_installed():
        where = recipe.where("training.kernels")
        needs = f"{t.kernels} needs the package liger-kernel, which is not installed"
        found["'lrft[liger]'"] = f"{where}  training.kernels: {needs}"
    if found:
        raise MissingError("\n".join(found.values()), f"pip install {' '.join(found)}")
    refuse_without_login(recipe)


def refuse_without_login(recipe: Recipe) -> None:
    """Raises MissingError for a push without a token of the hub."""
    if recipe.after.push is None:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        where = recipe.where("after.push")
        raise MissingError(f"{where}  after.push: there is no token of the hub here", "Log in: hf auth login")

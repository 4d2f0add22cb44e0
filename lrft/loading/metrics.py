"""The metrics of a recipe: those of the registry, and functions of a user's file."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrft.errors import DataError, MissingError, Problem, RecipeError, UsageError
from lrft.loading.from_recipe import made
from lrft.metrics.base import Metric
from lrft.objectives.base import LossModule, Objective
from lrft.recipe import Recipe
from lrft.registry import PYTHON, missing_package


class OwnFunction(Metric):
    """python:FILE:FUNCTION, a user's code: it gets the answers, and returns a number, the higher the better."""

    def __init__(self, name: str, function: Callable[[Any], Any]) -> None:
        self.name = name  # type: ignore[misc]
        self.function = function

    def score(self, answers: Sequence[Mapping[str, str]]) -> float:
        """Raises DataError when the function fails, or returns no finite number."""
        try:
            value = float(self.function([dict(answer) for answer in answers]))
        except Exception as error:
            raise DataError(f"evaluation.metrics: {self.name} failed: {type(error).__name__}: {error}") from error
        if not math.isfinite(value):
            raise DataError(f"evaluation.metrics: {self.name} returned {value}")
        return value


@dataclass(frozen=True)
class Metrics:
    """Those that a recipe asks for."""

    of_rows: tuple[Metric, ...]
    of_answers: tuple[Metric, ...]

    def scores(self, answers: Sequence[Mapping[str, str]]) -> dict[str, float]:
        """By name; of no answers none."""
        return {metric.name: metric.score(answers) for metric in self.of_answers} if answers else {}


def refuse_unfit_metrics(recipe: Recipe, objective: Objective, losses: LossModule) -> None:
    """What can be said of evaluation.metrics without running a user's code. Raises MissingError for a file that is not
    there, RecipeError for a metric of the rows that the objective does not offer."""
    for chosen in recipe.evaluation.metrics:
        if chosen.name.startswith(PYTHON):
            own_file(recipe, chosen.name)
    ours = [made(chosen, "metrics") for chosen in recipe.evaluation.metrics if not chosen.name.startswith(PYTHON)]
    figures_of(recipe, objective, losses, [metric for metric in ours if metric.of_rows])


def figures_of(recipe: Recipe, objective: Objective, losses: LossModule, metrics: Sequence[Metric]) -> frozenset[str]:
    """Those of `metrics`, all of the rows, that the objective's module has to count. Raises RecipeError for one that it
    does not offer."""
    there = {"loss", *(("perplexity",) if objective.perplexity else ())}
    wanted = {metric.name for metric in metrics} - there
    if missing := sorted(wanted.difference(losses.offers)):
        text = f"evaluation.metrics: training.objective: {objective.name} has no {missing[0]}"
        raise RecipeError([Problem(recipe.where("evaluation.metrics"), text)])
    return frozenset(wanted)


def metrics_of(recipe: Recipe, *, allow_code: bool, of_answers: bool = True) -> Metrics:
    """of_answers: whether there are answers; without, only metrics of the rows are made, and no code of a user's.

    Raises UsageError for a user's code that has not been allowed, MissingError for one that is not there.
    """
    for chosen in recipe.evaluation.metrics:
        if package := missing_package(chosen, "metrics"):
            text = f"evaluation.metrics: {chosen.name} needs the package {package}, which is not installed"
            raise MissingError(text, f"pip install {package}")
    found = [
        own_function(recipe, chosen.name, allow_code) if chosen.name.startswith(PYTHON) else made(chosen, "metrics")
        for chosen in recipe.evaluation.metrics
        if of_answers or not chosen.name.startswith(PYTHON)
    ]
    return Metrics(
        tuple(metric for metric in found if metric.of_rows), tuple(metric for metric in found if not metric.of_rows)
    )


def own_file(recipe: Recipe, name: str) -> tuple[str, str]:
    """(file, function) of python:FILE:FUNCTION. Raises MissingError for a file that is not there. Runs nothing."""
    path, _, function = name.removeprefix(PYTHON).rpartition(":")
    if not Path(path).is_file():
        raise MissingError(f"{recipe.where('evaluation.metrics')}  evaluation.metrics: there is no file {path}")
    return path, function


def own_function(recipe: Recipe, name: str, allow_code: bool) -> OwnFunction:
    """The function that python:FILE:FUNCTION names. Runs the file."""
    where = recipe.where("evaluation.metrics")
    if not allow_code:
        raise UsageError(
            f"{where}  evaluation.metrics: {name} runs Python code of a file",
            "Read the file, then give --allow-code to the command.",
        )
    path, function = own_file(recipe, name)
    spec = importlib.util.spec_from_file_location(f"lrft_metrics_{Path(path).stem}", path)
    if spec is None or spec.loader is None:
        raise MissingError(f"{where}  evaluation.metrics: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return OwnFunction(function, getattr(module, function))
    except AttributeError:
        raise MissingError(f"{where}  evaluation.metrics: {path} has no function {function}") from None
    except Exception as error:
        text = f"{where}  evaluation.metrics: {path} cannot be run: {type(error).__name__}: {error}"
        raise MissingError(text) from error

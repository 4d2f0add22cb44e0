"""Reject keys without effect that only the data or the model reveal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lrft import registry
from lrft.data import Prepared
from lrft.data.sampler import batch_schedule
from lrft.errors import Problem, RecipeError
from lrft.loading.evaluation_interval import evaluation_interval
from lrft.optim import lr_schedule
from lrft.recipe import EarlyStopping, Recipe
from lrft.utils.text import count


def refuse_without_effect(recipe: Recipe, prepared: Prepared) -> None:
    """Raise RecipeError for a revision of a local model, a warm-up that is longer than the run, early stopping that can
    never stop it, and steps of a row that would be compared with nothing."""
    total = batch_schedule(recipe, prepared.train).total_steps
    found = [
        *_revision(recipe),
        *_warmup(recipe, total),
        *_early_stopping(recipe, prepared, total),
        *_alone(recipe, prepared),
    ]
    if found:
        raise RecipeError([Problem(recipe.where(key), f"{key}: {text}") for key, text in found])


def _alone(recipe: Recipe, prepared: Prepared) -> Iterator[tuple[str, str]]:
    """A row that is compared with nothing has no loss."""
    facts, rows = registry.declared("objectives")[recipe.training.objective.name].facts, prepared.train
    together = min(recipe.training.global_batch_size, len(rows))
    if facts.get("compares_rows", False) and together == 1 and (rows.counts <= 2).any():
        text = "1 row a step: a query is compared with the documents of its step, and here there is its own alone"
        yield "training.global_batch_size", f"{text}. Give 2 or more, and more rows, or rows with negatives"


def _revision(recipe: Recipe) -> Iterator[tuple[str, str]]:
    name = recipe.model.name
    if recipe.model.revision is not None and Path(name).expanduser().exists():
        yield "model.revision", f"has no effect: {name} is local, and only hub models have revisions"


def _warmup(recipe: Recipe, total: int) -> Iterator[tuple[str, str]]:
    steps = recipe.training.warmup_steps
    if steps is not None and steps > total:
        reached = f"{total / steps:.0%} of training.learning_rate is the highest learning rate it would reach"
        yield "training.warmup_steps", f"{steps:,}, but the run has {total:,} steps: {reached}"


def _early_stopping(recipe: Recipe, prepared: Prepared, total: int) -> Iterator[tuple[str, str]]:
    stopping = recipe.training.early_stopping
    if not isinstance(stopping, EarlyStopping):
        return
    if prepared.validation is None:
        reason = prepared.report.held_out or "there are no validation rows"
        yield "training.early_stopping", f"has no effect: {reason}"
        return
    every = evaluation_interval(recipe, prepared, batch_schedule(recipe, prepared.train))
    evaluations = sum(lr_schedule.due(step, every, total) for step in range(1, total + 1))
    # The start or the first one sets what the others are compared with, and at the last one the run ends anyway.
    compared = evaluations if recipe.evaluation.at_start else evaluations - 1
    if stopping.patience > compared - 1:
        by = ", by evaluation.every: auto" if recipe.evaluation.every == "auto" else ""
        made = count(evaluations, "evaluation")
        text = f"{stopping.patience}, but the run has {made}{by}: it can never stop the run early"
        yield "training.early_stopping.patience", text

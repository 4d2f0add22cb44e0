"""What is to be said of the recipe's optimiser before anything is loaded."""

from __future__ import annotations

from lrft import registry
from lrft.adapters.compose import compose_section
from lrft.errors import Problem, RecipeError
from lrft.loading.from_recipe import made
from lrft.optim.base import Optimizer
from lrft.recipe import Recipe


def refuse_optimizer(recipe: Recipe, gpu: bool) -> None:
    """Raises UsageError for an optimiser that cannot run, RecipeError for one that keeps another point than it trains
    beside parts that write to trained tensors. gpu: whether there is one."""
    optimizer: Optimizer = made(recipe.training.optimizer, "optimizers")
    optimizer.refuse(gpu)
    writing = [part.name for part in compose_section(recipe.adapter).parts if part.acts_around_steps]
    if optimizer.averages and writing:
        text = (
            f"adapter.method: {', '.join(writing)} acts on trained tensors between steps, and {optimizer.name} keeps "
            "two points of each. Use training.optimizer: adamw"
        )
        raise RecipeError([Problem(recipe.where("adapter.method"), text)])


def rate_hint(recipe: Recipe) -> list[str]:
    """A sentence where a default learning rate, which is one of adamw, meets an optimiser with others."""
    t, origin = recipe.training, recipe.where("training.learning_rate")
    rates = registry.declared("optimizers")[t.optimizer.name].facts.get("rates", "")
    if not rates or not origin.startswith("default"):
        return []
    return [f"training.learning_rate is {t.learning_rate:g}, a default for adamw; {t.optimizer.name} {rates}"]

"""What runs are ranked by: the loss, what follows from it, exact match, or a figure of the recipes' objective."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lrft import registry
from lrft.errors import nearest
from lrft.recipe.schema import Recipe

LOSS, PERPLEXITY, EXACT_MATCH = "loss", "perplexity", "exact_match"
COMMON = (LOSS, PERPLEXITY, EXACT_MATCH)


def metrics_of(objective: str) -> list[str]:
    """Those that the runs of an objective have."""
    facts = registry.declared("objectives")[objective].facts
    common = {PERPLEXITY: facts.get("perplexity", False), EXACT_MATCH: not facts.get("head")}
    return [LOSS, *(name for name, there in common.items() if there), *facts.get("ranked_by", {})]


def every_metric() -> list[str]:
    return list(dict.fromkeys([*COMMON, *(m for name in registry.declared("objectives") for m in metrics_of(name))]))


def lower_is_better(metric: str) -> bool:
    """Also for the figures of an objective, which declares it."""
    declared = (card.facts.get("ranked_by", {}) for card in registry.declared("objectives").values())
    directions = [figures[metric] for figures in declared if metric in figures]
    return "lower" in directions if directions else metric != EXACT_MATCH


def unknown(metric: object) -> str:
    """What to say of a metric that no run has."""
    close = nearest(metric, every_metric()) if isinstance(metric, str) else []
    return f"metric: expected one of {', '.join(every_metric())}" + (f". Did you mean {close[0]}?" if close else "")


def unfit(metric: str, recipes: Sequence[Recipe]) -> list[str]:
    """Why runs of these recipes cannot be ranked by it, a sentence for each reason."""
    objectives = list(dict.fromkeys(recipe.training.objective.name for recipe in recipes))
    said = [
        f"metric: {metric} is no figure of training.objective: {name}. There: {', '.join(metrics_of(name))}"
        for name in objectives
        if metric not in metrics_of(name)
    ]
    if said or len(objectives) < 2 or metric not in (LOSS, PERPLEXITY):
        return said
    common = [name for name in metrics_of(objectives[0]) if all(name in metrics_of(other) for other in objectives)]
    others = [name for name in common if name not in (LOSS, PERPLEXITY)]
    way = f". They share: {', '.join(others)}" if others else ""
    return [f"metric: the {metric} of {_all(objectives)} are not the same quantity{way}"]


def _all(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}"

"""How often a run evaluates: as its recipe says, or as often as a share of its time allows.

`auto` counts tokens and never looks at the clock, nor at what may change when a run is resumed, such as the
micro-batch: a resumed run evaluates after the same steps.
"""

from __future__ import annotations

import math

from lrft import registry
from lrft.data import BatchSchedule, Prepared, Rows
from lrft.data.sampler import tokens_of
from lrft.optim import lr_schedule
from lrft.recipe import Recipe

SHARE = 0.1
"""of the steps' time, for all evaluations together"""
MOST = 10
"""evaluations after the first step"""
# In passes of one token forward: a trained token goes forward and back through a frozen base. A token of an answer
# needs all weights for itself, which takes many times as long as one of many in a row.
TRAINED, GENERATED = 2, 16


def evaluation_interval(recipe: Recipe, prepared: Prepared, schedule: BatchSchedule) -> int | None:
    """Optimiser steps between two evaluations; None where there are none."""
    if prepared.validation is None:
        return None
    if recipe.evaluation.every != "auto":
        return lr_schedule.interval(recipe.evaluation.every, schedule.total_steps)
    training = TRAINED * tokens_of(prepared.train, schedule)
    allowed = int(SHARE * training / evaluation_cost(recipe, prepared.validation)) - recipe.evaluation.at_start
    return math.ceil(schedule.total_steps / min(max(allowed, 1), MOST))


def evaluations(recipe: Recipe, prepared: Prepared, schedule: BatchSchedule) -> int:
    """How many the run makes, the one before the first step included."""
    every = evaluation_interval(recipe, prepared, schedule)
    if every is None:
        return 0
    return math.ceil(schedule.total_steps / every) + recipe.evaluation.at_start


def evaluation_cost(recipe: Recipe, rows: Rows) -> int:
    """Cost of one evaluation, in forward passes of one token. Further sets count as the first one does."""
    return (1 + len(recipe.evaluation.sets)) * int(rows.lengths.sum()) + GENERATED * answer_tokens(recipe, rows)


def answer_tokens(recipe: Recipe, rows: Rows) -> int:
    """At most generated in one evaluation."""
    if registry.head_of(recipe.training.objective.name):
        return 0
    return min(answered_rows(recipe), len(rows)) * recipe.evaluation.max_new_tokens


def answered_rows(recipe: Recipe) -> int:
    """Rows whose answers are shown, or that metrics look at: the larger."""
    cards, e = registry.declared("metrics"), recipe.evaluation
    of_rows = all(m.name in cards and cards[m.name].facts.get("of_rows", False) for m in e.metrics)
    return max(e.samples, 0 if of_rows else e.answers)

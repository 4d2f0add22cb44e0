"""What the time of a run goes to: its start, steps, evaluations, answers and checkpoints. A forecast from counts."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass

from lrft.data import BatchSchedule, Prepared
from lrft.loading.evaluation_interval import answer_tokens, evaluation_interval, evaluations
from lrft.optim import lr_schedule
from lrft.recipe import Recipe

# About what one disk and one core manage: bytes of weights read a second, and of a checkpoint written, synced and
# summed; seconds of each checkpoint for its small files.
READ, WRITTEN, EACH_CHECKPOINT = 1e9, 2e8, 0.3
EACH_BLOCK = 5e-4
"""seconds in which a block of layers is called, for one token"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the adapted model."""

    matrix: int
    """weights of its linear layers"""
    asked: int
    """the same of what answers beside it without gradients, in each step and evaluation"""
    asked_before: int
    """the same of what answers all rows once, before the first step"""
    blocks: int
    weights: int
    """bytes of the base"""
    checkpoint: int
    """bytes of adapter and optimiser state"""
    copies: int
    """of each row, side by side"""


@dataclass(frozen=True)
class Speeds:
    many: float
    """operations a second of products of many rows, in a whole step, on all devices together"""
    single: float
    """seconds that a product of one row takes for each weight"""


@dataclass(frozen=True)
class TimeParts:
    """Seconds."""

    start: float
    """libraries, data and weights"""
    before: float
    """what the objective asks of the base before the first step, where the cache does not have it"""
    steps: float
    evaluation: float
    """losses of the validation rows"""
    answers: float
    """samples that evaluations generate, if each is as long as allowed"""
    saving: float

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def time_parts(
    recipe: Recipe, prepared: Prepared, schedule: BatchSchedule, sizes: Sizes, speeds: Speeds, flops: float, micro: int
) -> TimeParts:
    """flops: of all steps. micro: rows of a pass. The start counts what this process has done so far, as a run does the
    same."""
    rows, n = prepared.validation, evaluations(recipe, prepared, schedule)
    tokens = int(rows.lengths.sum()) if rows is not None else 0
    token = max(sizes.matrix * speeds.single, 2 * sizes.matrix / speeds.many) + sizes.blocks * EACH_BLOCK
    generated = answer_tokens(recipe, rows) if rows is not None else 0
    together = min(micro, max(recipe.evaluation.samples, 1))
    return TimeParts(
        start=time.process_time() + sizes.weights / READ,
        before=2.0 * sizes.asked_before * (tokens + int(prepared.train.lengths.sum())) / speeds.many,
        steps=flops / speeds.many,
        evaluation=n * sizes.copies * 2.0 * (sizes.matrix + sizes.asked) * tokens / speeds.many,
        answers=n * math.ceil(generated / together) * token,
        saving=checkpoints(recipe, prepared, schedule) * (EACH_CHECKPOINT + sizes.checkpoint / WRITTEN),
    )


def checkpoints(recipe: Recipe, prepared: Prepared, schedule: BatchSchedule) -> int:
    """How many are made when every evaluation is the best so far."""
    total = schedule.total_steps
    intervals = (lr_schedule.interval(recipe.checkpoint.every, total), evaluation_interval(recipe, prepared, schedule))
    return len({total, *(step for every in intervals if every for step in range(every, total + 1, every))})

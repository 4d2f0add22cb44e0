"""Batch schedule: rows of each optimiser step as a pure function of seed and epoch, so resuming needs no state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from lrft.data.mixture import Mixture
from lrft.errors import Problem, RecipeError
from lrft.utils.seeds import seed_of

if TYPE_CHECKING:
    from lrft.data.dataset import Rows
    from lrft.recipe import Recipe


def epoch_order(n: int, seed: int, epoch: int, shuffle: bool) -> np.ndarray:
    """The order of the rows 0..n-1 in `epoch` (from 0): int64 (n,)."""
    if not shuffle:
        return np.arange(n, dtype=np.int64)
    return np.random.default_rng([seed, epoch]).permutation(n).astype(np.int64)


class BatchSchedule:
    """The rows of every optimiser step. Each row comes once per epoch; an epoch's last step may be smaller.

    `epochs` may be fractional: training ends after ceil(epochs x steps_per_epoch) steps. With `max_steps` as
    well, whichever ends first. mixture: says what an epoch has, of which n_rows is the number then.
    """

    def __init__(
        self,
        n_rows: int,
        global_batch: int,
        epochs: float | None,
        max_steps: int | None,
        seed: int,
        shuffle: bool,
        mixture: Mixture | None = None,
    ) -> None:
        if n_rows < 1 or global_batch < 1:
            raise ValueError(f"rows and a batch size are required, got {n_rows} and {global_batch}")
        if epochs is None and max_steps is None:
            raise ValueError("epochs or max_steps is required")
        self.n_rows, self.global_batch, self.seed, self.shuffle = n_rows, global_batch, seed, shuffle
        self.steps_per_epoch = math.ceil(n_rows / global_batch)
        ends = [] if max_steps is None else [max_steps]
        if epochs is not None:
            # Rounded first: 1.1 x 50 is 55.00000000000001 and must not become 56 steps.
            ends.append(max(1, math.ceil(round(epochs * self.steps_per_epoch, 9))))
        self.total_steps = min(ends)
        self.mixture = mixture
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that optimiser step `step` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def order(self, epoch: int) -> np.ndarray:
        """All rows of `epoch` (from 0), in order: int64 (n_rows,)."""
        if self.mixture is not None:
            return self.mixture.order(epoch)
        return epoch_order(self.n_rows, self.seed, epoch, self.shuffle)

    def rows(self, step: int) -> np.ndarray:
        """Ids of the rows of optimiser step `step`: int64, at most (global_batch,)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside 0..{self.total_steps - 1}")
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, self.order(epoch))
        return self._cached[1][place * self.global_batch : (place + 1) * self.global_batch]


def batch_schedule(recipe: Recipe, rows: Rows) -> BatchSchedule:
    """Which rows form which step of the run. Raises RecipeError for a source with a weight and no row."""
    t, mixture = recipe.training, mixture_of(recipe, rows)
    n = len(rows) if mixture is None else sum(mixture.counts)
    return BatchSchedule(n, t.global_batch_size, t.epochs, t.max_steps, t.seed, recipe.data.shuffle, mixture)


def mixture_of(recipe: Recipe, rows: Rows) -> Mixture | None:
    """The mixture that data.train asks for with its weights, if it does."""
    shares = [entry.weight for entry in recipe.data.train if entry.weight is not None]
    if not shares:
        return None
    members = [np.flatnonzero(rows.entries == k) for k in range(len(shares))]
    for k, ids in enumerate(members):
        if not len(ids):
            key = f"data.train.{k}.weight"
            text = f"{key}: {recipe.data.train[k].path} has no row to train on, so it can have no share of the steps"
            raise RecipeError([Problem(recipe.where(key), text)])
    return Mixture(members, shares, recipe.data.stop, recipe.training.seed, recipe.data.shuffle)


def auxiliary_schedule(recipe: Recipe, rows: Rows | None, steps: int) -> BatchSchedule | None:
    """Which auxiliary rows belong to which step: as many as the step has of its own, shuffled anew in each round."""
    if rows is None:
        return None
    t = recipe.training
    return BatchSchedule(len(rows), t.global_batch_size, None, steps, seed_of(t.seed, "auxiliary order"), True)


def tokens_of(rows: Rows, schedule: BatchSchedule) -> int:
    """Tokens of the whole run."""
    whole, rest = divmod(schedule.total_steps, schedule.steps_per_epoch)
    last = sum(int(rows.lengths[schedule.rows(whole * schedule.steps_per_epoch + step)].sum()) for step in range(rest))
    if schedule.mixture is not None:
        return sum(int(rows.lengths[schedule.order(epoch)].sum()) for epoch in range(whole)) + last
    return whole * int(rows.lengths.sum()) + last


def rows_drawn(rows: Rows, schedule: BatchSchedule) -> np.ndarray:
    """How many rows of each entry of data.train the run trains on, repeated ones counted again: int64 (entries,)."""
    whole, rest = divmod(schedule.total_steps, schedule.steps_per_epoch)
    n = int(rows.entries.max(initial=-1)) + 1
    if schedule.mixture is None:
        drawn = whole * np.bincount(rows.entries, minlength=n)
    else:
        drawn = whole * np.array(schedule.mixture.counts, dtype=np.int64)
    for step in range(rest):
        ids = schedule.rows(whole * schedule.steps_per_epoch + step)
        drawn = drawn + np.bincount(rows.entries[ids], minlength=len(drawn))
    return drawn

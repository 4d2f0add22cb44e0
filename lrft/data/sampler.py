"""Batch schedule: rows of each optimiser step as a pure function of seed and epoch, so resuming needs no state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

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
    well, whichever ends first.
    """

    def __init__(
        self,
        n_rows: int,
        global_batch: int,
        epochs: float | None,
        max_steps: int | None,
        seed: int,
        shuffle: bool,
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
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that optimiser step `step` (from 0) belongs to."""
        return step // self.steps_per_epoch

    def rows(self, step: int) -> np.ndarray:
        """Ids of the rows of optimiser step `step`: int64, at most (global_batch,)."""
        if not 0 <= step < self.total_steps:
            raise IndexError(f"step {step} is outside 0..{self.total_steps - 1}")
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._cached is None or self._cached[0] != epoch:
            self._cached = (epoch, epoch_order(self.n_rows, self.seed, epoch, self.shuffle))
        return self._cached[1][place * self.global_batch : (place + 1) * self.global_batch]


def batch_schedule(recipe: Recipe, rows: Rows) -> BatchSchedule:
    """Which rows form which step of the run."""
    t = recipe.training
    return BatchSchedule(len(rows), t.global_batch_size, t.epochs, t.max_steps, t.seed, recipe.data.shuffle)


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
    return whole * int(rows.lengths.sum()) + last

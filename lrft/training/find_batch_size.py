"""Find the largest micro batch size that fits in memory, tried with the longest rows before the first step."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import numpy as np
import torch

from lrft.data import Rows
from lrft.distributed import processes
from lrft.planning.activation_memory import keeping, size_of
from lrft.training.engine import Engine
from lrft.utils import hardware

# Of the memory that a machine without a GPU still has: it kills who asks for more than there is, without a word.
SHARE_OF_MEMORY = 0.6
# Of a GPU's memory that a trial must leave: memory is in pieces after some hours, and other rows come in other lengths.
RESERVE = 0.05


def largest_that_fits(engine: Engine, sets: Sequence[Rows], global_batch: int) -> int:
    """The largest micro-batch whose pass, backward pass and step go through, of a step's rows and their halves.

    Tried are the longest rows of each of `sets`, which a step passes over one after the other. Every process has the
    same answer. Parameters, gradients and the state of the optimiser are afterwards as they were. Raises what runs out
    of memory when a single row does.
    """
    count = min(math.ceil(global_batch / engine.world), max(map(len, sets)))
    if engine.device.type == "cpu":
        # The least of all processes: they make their passes together.
        mine = torch.tensor([min(expected_to_fit(engine, rows, count) for rows in sets)])
        count = int(engine.accelerator.gather(mine).min())
    while True:
        with hardware.reserving(engine.device, RESERVE if count > 1 else 0.0):
            failed = next((error for rows in sets if (error := attempt(engine, rows, count))), None)
        if not engine.reduce(torch.tensor([float(failed is not None)], device=engine.device)).item():
            hardware.forget_peak(engine.device)  # that of larger ones than the run's
            return count
        if count == 1:
            raise failed or RuntimeError("another process cannot allocate memory for one row")
        count = math.ceil(count / 2)


def attempt(engine: Engine, rows: Rows, count: int) -> BaseException | None:
    """One pass, backward pass and step of length zero with the `count` longest rows. Returns what ran out of memory."""
    failed = None
    engine.model.train()
    try:
        # Without the wrapper's exchange of gradients: a process that fails must not leave others waiting.
        with engine.accelerator.no_sync(engine.model):
            engine.accelerator.backward(engine.answer(engine.batch(rows, longest(rows, count))))
        step_of_length_zero(engine.optimizer.optimizer)
    except (RuntimeError, MemoryError) as error:
        if not hardware.says_out_of_memory(error):
            raise
        failed = error.with_traceback(None)
    engine.losses.take_extra()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.optimizer.optimizer.state.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def step_of_length_zero(optimizer: torch.optim.Optimizer) -> None:
    """A step of the optimiser, for the memory that its state takes, which leaves every number where it is."""
    before = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    kept = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    for group in optimizer.param_groups:
        group["lr"] = group["weight_decay"] = 0.0
    optimizer.step()
    for group, (lr, decay) in zip(optimizer.param_groups, before, strict=True):
        group["lr"], group["weight_decay"] = lr, decay
    with torch.no_grad():
        for p, value in zip((p for group in optimizer.param_groups for p in group["params"]), kept, strict=True):
            p.copy_(value)


def expected_to_fit(engine: Engine, rows: Rows, most: int) -> int:
    """By what one row's pass keeps for its backward pass, for a machine that cannot be tried.

    The memory that is left is that of all processes of the machine.
    """
    available = hardware.available()
    if available is None:
        return most
    available //= processes.local_world_size()
    (one,) = longest(rows, 1)
    engine.model.train()
    with keeping(engine.losses) as kept:
        engine.model(engine.batch(rows, [one]))
    engine.losses.take_extra()
    return max(1, min(most, int(SHARE_OF_MEMORY * available / max(1, size_of(kept)))))


def longest(rows: Rows, n: int) -> list[int]:
    """Ids of the n longest rows."""
    return [int(i) for i in np.argsort(-rows.lengths, kind="stable")[:n]]

"""Find the largest micro batch that fits in memory, in rows or in tokens: the longest rows, before the first step."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from lrft.data import Rows
from lrft.distributed import processes
from lrft.planning.activation_memory import keeping, size_of
from lrft.recipe.schema import MOST_TOKENS
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
    most = min(math.ceil(global_batch / engine.world), max(map(len, sets)))
    return _search(engine, sets, most, longest, expected_to_fit)


def most_tokens_that_fit(engine: Engine, sets: Sequence[Rows], global_batch: int) -> int:
    """The same in tokens of a pass: those of a step's longest rows, MOST_TOKENS at most, and their halves."""
    share = math.ceil(global_batch / engine.world)
    whole = max(int(rows.lengths[longest(rows, share)].sum()) for rows in sets)
    return _search(engine, sets, min(MOST_TOKENS, whole), partial(fullest, engine), tokens_expected_to_fit)


def _search(
    engine: Engine,
    sets: Sequence[Rows],
    most: int,
    chosen: Callable[[Rows, int], list[int]],
    expected: Callable[[Engine, Rows, int], int],
) -> int:
    """The first of `most` and its halves that fits. chosen: ids of the rows that are tried. expected: see
    `expected_to_fit`."""
    size = most
    if engine.device.type == "cpu":
        # The least of all processes: they make their passes together.
        mine = torch.tensor([min(expected(engine, rows, size) for rows in sets)])
        size = int(engine.accelerator.gather(mine).min())
    while True:
        tried = [chosen(rows, size) for rows in sets]
        with hardware.reserving(engine.device, RESERVE if max(map(len, tried)) > 1 else 0.0):
            failed = next((e for rows, ids in zip(sets, tried, strict=True) if (e := attempt(engine, rows, ids))), None)
        if not engine.reduce(torch.tensor([float(failed is not None)], device=engine.device)).item():
            hardware.forget_peak(engine.device)  # that of larger ones than the run's
            return size
        if max(map(len, tried)) == 1:
            raise failed or RuntimeError("another process cannot allocate memory for one row")
        size = math.ceil(size / 2)


def attempt(engine: Engine, rows: Rows, ids: Sequence[int]) -> BaseException | None:
    """One pass, backward pass and step of length zero with the rows `ids`. Returns what ran out of memory."""
    failed = None
    engine.model.train()
    try:
        # Without the wrapper's exchange of gradients: a process that fails must not leave others waiting.
        with engine.accelerator.no_sync(engine.model):
            engine.accelerator.backward(engine.answer(engine.batch(rows, ids)))
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
    """Rows, by what one row's pass keeps for its backward pass, for a machine that cannot be tried.

    The memory that is left is that of all processes of the machine.
    """
    room = room_in_rows(engine, rows)
    return most if room is None else max(1, min(most, int(room)))


def tokens_expected_to_fit(engine: Engine, rows: Rows, most: int) -> int:
    """The same in tokens; at least those of the longest row."""
    room, one = room_in_rows(engine, rows), int(rows.lengths.max())
    return most if room is None else max(one, min(most, int(room * one)))


def room_in_rows(engine: Engine, rows: Rows) -> float | None:
    """How many of the longest row this process has memory for; None where nothing says."""
    available = hardware.available()
    if available is None:
        return None
    available //= processes.local_world_size()
    (one,) = longest(rows, 1)
    engine.model.train()
    with keeping(engine.losses) as kept:
        engine.model(engine.batch(rows, [one]))
    engine.losses.take_extra()
    return SHARE_OF_MEMORY * available / max(1, size_of(kept))


def longest(rows: Rows, n: int) -> list[int]:
    """Ids of the n longest rows."""
    return [int(i) for i in np.argsort(-rows.lengths, kind="stable")[:n]]


def fullest(engine: Engine, rows: Rows, tokens: int) -> list[int]:
    """Ids of rows that fill a pass of at most so many tokens; one row at least, the longest."""
    ids = np.array(longest(rows, len(rows)))
    if engine.layout.form == "padded":
        # As many as fit of each length and those below.
        each = rows.longest[ids] * rows.counts[ids]
        fit = np.maximum(np.minimum(tokens // each, np.arange(len(ids), 0, -1)), 1)
        first = int(np.argmax(np.where(fit * each <= tokens, fit * each, 0)))
        return [int(i) for i in ids[first : first + fit[first]]]
    chosen, left, shortest = [int(ids[0])], tokens - int(rows.lengths[ids[0]]), int(rows.lengths.min())
    for row in ids[1:].tolist():
        if left < shortest:
            break
        if rows.lengths[row] <= left:
            chosen.append(row)
            left -= int(rows.lengths[row])
    return chosen

"""How many rows fit into one pass: tried with the longest rows, before the first step."""

from __future__ import annotations

import gc
import math
import os

import numpy as np
import torch

from lrft.planning.activation_memory import keeping, size_of
from lrft.training.state import Trainer
from lrft.utils import hardware

# Of the memory that a machine without a GPU still has: it kills who asks for more than there is, without a word.
SHARE_OF_MEMORY = 0.6


def largest_that_fits(trainer: Trainer) -> int:
    """The largest micro-batch whose pass, backward pass and step go through, of a step's rows and their halves.

    Tried are the longest rows of the data. Every process has the same answer. Parameters, gradients and the state of
    the optimiser are afterwards as they were. Raises what runs out of memory when a single row does.
    """
    rows = math.ceil(trainer.recipe.training.global_batch_size / trainer.accelerator.num_processes)
    rows = min(rows, len(trainer.rows))
    if trainer.accelerator.device.type == "cpu":
        # The least of all processes: they make their passes together.
        mine = torch.tensor([expected_to_fit(trainer, rows)])
        rows = int(trainer.accelerator.gather(mine).min())
    while True:
        failed = attempt(trainer, rows)
        device = trainer.accelerator.device
        if not trainer.reduce(torch.tensor([float(failed is not None)], device=device)).item():
            return rows
        if rows == 1:
            raise failed or RuntimeError("another process cannot allocate memory for one row")
        rows = math.ceil(rows / 2)


def attempt(trainer: Trainer, rows: int) -> BaseException | None:
    """One pass, backward pass and step of length zero with the `rows` longest rows. Returns what ran out of memory."""
    failed = None
    trainer.model.train()
    try:
        # Without the wrapper's exchange of gradients: a process that fails must not leave others waiting.
        with trainer.accelerator.no_sync(trainer.model):
            trainer.accelerator.backward(trainer.answer(trainer.collate(longest(trainer, rows))))
        at_rest(trainer)
    except (RuntimeError, MemoryError) as error:
        if not hardware.says_out_of_memory(error):
            raise
        failed = error.with_traceback(None)
    trainer.losses.take_extra()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.optimizer.optimizer.state.clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failed


def at_rest(trainer: Trainer) -> None:
    """A step of the optimiser, for the memory that its state takes, which leaves every number where it is."""
    optimizer = trainer.optimizer.optimizer
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


def expected_to_fit(trainer: Trainer, most: int) -> int:
    """By what one row's pass keeps for its backward pass, for a machine that cannot be tried.

    The memory that is left is that of all processes of the machine.
    """
    available = hardware.available()
    if available is None:
        return most
    available //= max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    (one,) = longest(trainer, 1)
    trainer.model.train()
    with keeping(trainer.losses) as kept:
        trainer.model(trainer.collate([one]))
    trainer.losses.take_extra()
    return max(1, min(most, int(SHARE_OF_MEMORY * available / max(1, size_of(kept)))))


def longest(trainer: Trainer, n: int) -> list[int]:
    return [int(i) for i in np.argsort(-trainer.rows.lengths, kind="stable")[:n]]

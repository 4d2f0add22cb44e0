"""How fast this machine multiplies matrices, measured in a moment."""

from __future__ import annotations

import time
from functools import cache

import torch

from lrft.utils import hardware

MEASURED_SECONDS = 0.5
SINGLE_TRIES = 8
# Of the products that are measured.
FEWEST_ROWS, MOST_ROWS = 4, 1024


@cache  # a comparison plans many runs
def speed_here(dtype: torch.dtype) -> float:
    """Operations a second of matrix products as large as those of a small model, on the device that will train.

    Fewer rows where these take long: a CPU without instructions for bfloat16 is a hundred times slower in it.
    """
    device = hardware.device()
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((MOST_ROWS, 1024), (1024, 4096)))
    rows = FEWEST_ROWS
    seconds_of(a[:rows], b)  # the first one of a process takes longer
    while rows < MOST_ROWS and seconds_of(a[:rows], b) < MEASURED_SECONDS / 16:
        rows *= 2
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < MEASURED_SECONDS:
        seconds_of(a[:rows], b)
        done += 1
    return done * 2 * rows * 1024 * 4096 / (time.perf_counter() - began)


@cache
def seconds_of_a_weight(dtype: torch.dtype) -> float:
    """What a product of one row takes for each weight, in the fastest of a few tries."""
    device = hardware.device()
    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((1, 1024), (1024, 4096)))
    return min(seconds_of(a, b) for _ in range(SINGLE_TRIES)) / b.numel()


def seconds_of(a: torch.Tensor, b: torch.Tensor) -> float:
    """What one product takes of this thread, without the time that is given to other processes."""
    began = time.thread_time()
    a @ b
    if a.is_cuda:
        torch.cuda.synchronize()
    return time.thread_time() - began

"""Learning rate and due dates as pure functions of the step: nothing to save, nothing to restore wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

TIMESCALE = 10_000
"""of inverse-sqrt where neither the recipe nor a warm-up gives one"""


@dataclass(frozen=True)
class Shape:
    """A schedule by its name, with the options of all schedules (`training.lr_scheduler`)."""

    name: str
    min_lr_ratio: float = 0.0
    """the factor at the end"""
    decay_ratio: float = 0.2
    """of wsd: the fraction of the run in which it falls"""
    cycles: int = 1
    """of cosine-restarts: how often it falls"""
    power: float = 1.0
    """of polynomial"""
    timescale: int | None = None
    """of inverse-sqrt: steps after which the rate has fallen to 1 / sqrt(2); None: the warm-up, 10,000 without one"""


def lr_factor(step: int, total: int, shape: Shape, *, warmup: int) -> float:
    """The factor on the learning rate at optimiser step `step` (from 0) of `total`.

    Warm-up rises linearly and is never zero: step 0 of a warm-up of w steps has 1 / w. cosine, cosine-restarts, linear
    and polynomial fall to `min_lr_ratio` at the last step's end; wsd (warm-up, stable, decay) falls linearly over the
    last `decay_ratio` of the run; inverse-sqrt falls as 1 / sqrt(steps), whatever the length of the run.
    """
    if step < warmup:
        return (step + 1) / warmup
    if shape.name == "inverse-sqrt":
        timescale = shape.timescale or warmup or TIMESCALE
        return math.sqrt(timescale / (step - warmup + timescale))
    progress = (step - warmup) / max(1, total - warmup)
    return shape.min_lr_ratio + (1 - shape.min_lr_ratio) * FALLING[shape.name](progress, shape)


def _wsd(progress: float, shape: Shape) -> float:
    return max(0.0, min(1.0, (1 - progress) / shape.decay_ratio)) if shape.decay_ratio else 1.0


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


# From 1 to 0 over the run after warm-up, of which `progress` is done.
FALLING: dict[str, Callable[[float, Shape], float]] = {
    "cosine": lambda progress, shape: _cosine(progress),
    "cosine-restarts": lambda progress, shape: 0.0 if progress >= 1 else _cosine(shape.cycles * progress % 1.0),
    "linear": lambda progress, shape: max(0.0, 1 - progress),
    "polynomial": lambda progress, shape: max(0.0, 1 - progress) ** shape.power,
    "constant": lambda progress, shape: 1.0,
    "wsd": _wsd,
}


def interval(every: float | str, total: int) -> int | None:
    """Optimiser steps between two events: a fraction of the run below 1, else a number of steps; None for "none"."""
    if isinstance(every, str):
        return None
    return max(1, round(every * total)) if every < 1 else int(every)


def due(step: int, every: int | None, total: int) -> bool:
    """Whether an event with this interval falls after `step` steps are done. The end of the run always counts."""
    return every is not None and (step % every == 0 or step == total)

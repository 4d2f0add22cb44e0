"""Learning rate and due dates as pure functions of the step: nothing to save, nothing to restore wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable


def lr_factor(
    step: int, total: int, *, name: str, warmup: int, min_lr_ratio: float = 0.0, decay_ratio: float = 0.2
) -> float:
    """The factor on the learning rate at optimiser step `step` (from 0) of `total`.

    Warm-up rises linearly and is never zero: step 0 of a warm-up of w steps has 1 / w. cosine and linear fall to
    `min_lr_ratio` at the last step's end; wsd (warm-up, stable, decay) falls linearly over the last `decay_ratio` of
    the run.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return SHAPES[name](progress, min_lr_ratio, decay_ratio)


def _cosine(progress: float, floor: float, _: float) -> float:
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def _linear(progress: float, floor: float, _: float) -> float:
    return max(floor, floor + (1 - floor) * (1 - progress))


def _constant(progress: float, floor: float, _: float) -> float:
    return 1.0


def _wsd(progress: float, floor: float, decay: float) -> float:
    left = (1 - progress) / decay if decay else 1.0
    return floor + (1 - floor) * max(0.0, min(1.0, left))


SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "cosine": _cosine,
    "linear": _linear,
    "constant": _constant,
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

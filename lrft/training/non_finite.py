"""Losses and gradients that are NaN or infinite: a run stops at them, with the rows of the step."""

from __future__ import annotations

import math

import numpy as np

from lrft.data import Rows
from lrft.errors import NonFinite
from lrft.training.state import Progress

# Overflowing steps in a row under fp16: the loss scale starts at 2^16 and halves each time.
MOST_SKIPPED = 20


def refuse_non_finite(loss: float, *, norm: float, scaled: bool, step: int, rows: Rows, ids: np.ndarray) -> None:
    """Raises NonFinite, naming the step and its rows, before anything is changed by it.

    scaled: by a loss scale. With fp16 an overflowing gradient is ordinary: the scale shrinks and the step is skipped.
    """
    if math.isfinite(loss) and (math.isfinite(norm) or scaled):
        return
    what = f"the loss became {loss}" if not math.isfinite(loss) else f"the norm of the gradient became {norm}"
    places = ", ".join(rows.source(int(i)) for i in ids[:5]) + (" ..." if len(ids) > 5 else "")
    raise NonFinite(
        f"{what} at step {step}. Earlier checkpoints are kept. Rows in this step: {places}",
        "Lower training.learning_rate, or check these rows.",
    )


def refuse_endless_skips(progress: Progress, made: bool) -> None:
    """Raises NonFinite when fp16's loss scale has fallen for many steps and the gradient still overflows."""
    progress.skipped = 0 if made else progress.skipped + 1
    if progress.skipped >= MOST_SKIPPED:
        raise NonFinite(
            f"{progress.skipped} steps in a row were skipped: in fp16 the gradient is never finite. "
            "Earlier checkpoints are kept.",
            "Use training.precision: bf16 or fp32.",
        )

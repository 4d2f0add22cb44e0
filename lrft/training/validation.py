"""Loss on validation rows during training, the best state so far, and early stopping."""

from __future__ import annotations

import math
from typing import Any

from lrft.data import Rows
from lrft.errors import NonFinite
from lrft.evaluation.generate import answer_rows, with_prompts
from lrft.evaluation.loss import loss_of
from lrft.recipe import EarlyStopping
from lrft.training.engine import Engine
from lrft.training.state import Progress, Session

# What parts that ask for a loss during a step are given: the paper that introduced it takes 32 rows.
HELD_OUT_ROWS = 32


def validate(session: Session) -> bool:
    """Evaluate on the validation rows and report it. Returns whether this is the best trained state so far."""
    recipe, progress, engine, rows = session.recipe, session.progress, session.engine, session.inputs.validation
    if rows is None:
        raise ValueError("evaluation without validation rows")
    session.trackers.console.doing("evaluating")
    session.watchdog.at("evaluating")
    micro = recipe.evaluation.micro_batch_size or engine.micro
    record: dict[str, Any] = {"step": progress.step} | validation_loss(engine, rows, micro)
    asked = rows.slice([]) if engine.objective.head else with_prompts(rows)
    shown = asked.slice(range(min(recipe.evaluation.samples, len(asked))))
    if len(shown) and (engine.strategy.together or engine.accelerator.is_main_process):
        record["samples"] = answer_rows(
            session.base.model,
            session.inputs.tokenizer,
            shown,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            batch_size=micro,
            copies=engine.losses.copies,
        )
    improved = note_loss(progress, record["loss"], recipe.training.early_stopping)
    session.trackers.log("eval", record | {"best": improved})
    if not math.isfinite(record["loss"]):  # what gave it must not become a checkpoint
        raise NonFinite(
            f"the validation loss became {record['loss']} after step {progress.step}. Earlier checkpoints are kept.",
            "Lower training.learning_rate, or check the base model and the validation rows.",
        )
    return improved


def validation_loss(engine: Engine, rows: Rows, micro: int) -> dict[str, Any]:
    """`evaluation.loss_of` for the model as it is now, over all processes. micro: rows of a pass."""
    return loss_of(
        engine.model,
        rows,
        micro=micro,
        pad_id=engine.pad_id,
        objective=engine.objective,
        form=engine.layout.form,
        rank=engine.rank,
        world=engine.world,
        reduce=engine.reduce,
    )


def held_out_loss(session: Session) -> float | None:
    """Loss on the first few validation rows, over all processes; None without any."""
    rows = session.inputs.validation
    if rows is None:
        return None
    few = rows.slice(range(min(len(rows), HELD_OUT_ROWS)))
    micro = session.recipe.evaluation.micro_batch_size or session.engine.micro
    loss: float = validation_loss(session.engine, few, micro)["loss"]
    return loss


def note_loss(progress: Progress, loss: float, stopping: EarlyStopping | str) -> bool:
    """Book a validation loss; returns whether it is the best so far. A NaN is never the best.

    The untouched base is the first to be beaten, where it was measured.
    """
    if progress.step == 0:
        progress.start_loss = loss
    else:
        progress.last_loss = loss
    least = 0.0 if isinstance(stopping, str) else stopping.min_delta
    if progress.stale_loss is None or loss < progress.stale_loss - least:
        progress.stale_loss, progress.stale = loss, 0
    else:
        progress.stale += 1
    if not loss < (math.inf if progress.best_loss is None else progress.best_loss):
        return False
    progress.best_loss, progress.best_step = loss, progress.step
    return True


def has_patience(session: Session) -> bool:
    """False when early stopping ends the run."""
    stopping, progress = session.recipe.training.early_stopping, session.progress
    if isinstance(stopping, str) or progress.stale < stopping.patience:
        return True
    session.trackers.console.line(
        f"early stopping: {progress.stale} evaluations without a validation loss below {progress.stale_loss:.4f}"
    )
    return False

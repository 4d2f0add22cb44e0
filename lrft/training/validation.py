"""Loss on validation rows during training, the best state so far, and early stopping."""

from __future__ import annotations

import math
from typing import Any

from lrft.data import Rows
from lrft.errors import NonFinite
from lrft.evaluation.generate import answer_rows, pad_token, with_prompts
from lrft.evaluation.loss import loss_of
from lrft.training.state import Trainer

# What parts that ask for a loss during a step are given: the paper that introduced it takes 32 rows.
HELD_OUT_ROWS = 32


def validate(trainer: Trainer) -> bool:
    """Evaluate on the validation rows and tell it. Returns whether this is the best trained state so far."""
    recipe, progress, rows = trainer.recipe, trainer.progress, trainer.prepared.validation
    if rows is None:
        raise ValueError("evaluation without validation rows")
    trainer.reporter.doing("evaluating")
    trainer.watchdog.at("evaluating")
    record: dict[str, Any] = {"step": progress.step} | validation_loss(trainer, rows)
    asked = with_prompts(rows)
    shown = asked.slice(range(min(recipe.evaluation.samples, len(asked))))
    if len(shown) and (trainer.strategy.together or trainer.accelerator.is_main_process):
        record["samples"] = answer_rows(
            trainer.attached.model,
            trainer.tokenizer,
            shown,
            max_new_tokens=recipe.evaluation.max_new_tokens,
            batch_size=trainer.evaluation_micro,
            copies=trainer.losses.copies,
        )
    improved = note_loss(trainer, record["loss"])
    trainer.reporter.evaluation(record | {"best": improved})
    if not math.isfinite(record["loss"]):  # what gave it must not become a checkpoint
        raise NonFinite(
            f"the validation loss became {record['loss']} after step {progress.step}. Earlier checkpoints are kept.",
            "Lower training.learning_rate, or look at the base model and the validation rows.",
        )
    return improved


def validation_loss(trainer: Trainer, rows: Rows) -> dict[str, float]:
    """`evaluate.loss_of` for the model as it is now, over all processes."""
    return loss_of(
        trainer.model,
        rows,
        micro=trainer.evaluation_micro,
        pad_id=pad_token(trainer.tokenizer),
        form=trainer.layout.form,
        rank=trainer.accelerator.process_index,
        world=trainer.accelerator.num_processes,
        reduce=trainer.reduce,
    )


def held_out_loss(trainer: Trainer) -> float | None:
    """Loss on the first few validation rows, over all processes; None without any."""
    rows = trainer.prepared.validation
    if rows is None:
        return None
    few = rows.slice(range(min(len(rows), HELD_OUT_ROWS)))
    return validation_loss(trainer, few)["loss"]


def note_loss(trainer: Trainer, loss: float) -> bool:
    """Book a validation loss; returns whether it is the best of a trained state. A NaN is never the best."""
    progress, stopping = trainer.progress, trainer.recipe.training.early_stopping
    if progress.step == 0:
        progress.start_loss = loss
        return False
    least = 0.0 if isinstance(stopping, str) else stopping.min_delta
    if progress.stale_loss is None or loss < progress.stale_loss - least:
        progress.stale_loss, progress.stale = loss, 0
    else:
        progress.stale += 1
    if not loss < (math.inf if progress.best_loss is None else progress.best_loss):
        return False
    progress.best_loss, progress.best_step = loss, progress.step
    return True


def has_patience(trainer: Trainer) -> bool:
    """False when early stopping ends the run."""
    stopping, progress = trainer.recipe.training.early_stopping, trainer.progress
    if isinstance(stopping, str) or progress.stale < stopping.patience:
        return True
    trainer.reporter.line(
        f"stopping early: {progress.stale} evaluations without a better validation loss than {progress.stale_loss:.4f}"
    )
    return False

"""The training loop: optimiser steps, evaluations and checkpoints when they are due, until the end or a signal."""

from __future__ import annotations

from lrft.errors import Stopped
from lrft.loading.evaluation_interval import evaluation_interval
from lrft.optim import lr_schedule
from lrft.training.checkpoint import save
from lrft.training.diagnostics import AdapterHealth
from lrft.training.sanity_checks import MovementCheck
from lrft.training.signals import StopSignals
from lrft.training.state import Session
from lrft.training.step import train_step
from lrft.training.validation import has_patience, validate


def loop(session: Session, signals: StopSignals) -> None:
    """Optimiser steps until the last one, early stopping or a signal ends them. Raises Stopped after a signal."""
    recipe, progress, adapted = session.recipe, session.progress, session.adapted
    total = session.inputs.batches.total_steps
    evaluations = evaluation_interval(recipe, session.inputs.prepared, session.inputs.batches)
    checkpoints = lr_schedule.interval(recipe.checkpoint.every, total)
    movement = MovementCheck(
        adapted.attached,
        resumed=progress.step > 0,
        may_not_move=adapted.composition.may_not_move,
        sometimes=adapted.sometimes,
    )
    health = AdapterHealth(adapted.attached)
    session.trackers.console.begin(total, progress.step)
    if evaluations and recipe.evaluation.at_start and progress.step == 0:
        validate(session)
    session.engine.model.train()
    signal, patient = 0, has_patience(session)  # a run that was stopped early stays so when it is resumed
    while progress.step < total and patient and not signal:
        signal = train_step(session, movement, health, signals)
        improved = False
        if lr_schedule.due(progress.step, evaluations, total):
            improved = validate(session)
            patient = has_patience(session)
        leaving = signal or not patient or progress.step == total
        if improved or leaving or lr_schedule.due(progress.step, checkpoints, total):
            save(session, best=improved)
    if signal:
        raise Stopped(
            f"stopped by signal {signal} after step {progress.step} of {total}; a checkpoint was saved",
            signal,
            "Continue with the same command and --resume.",
        )

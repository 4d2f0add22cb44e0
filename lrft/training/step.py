"""One optimiser step over the global batch: begin, forward and backward, clip and step, record.

The loss is summed over all micro-batches and ranks and divided once by the step's count of trained tokens. No method is
known here by name: parts act through their hooks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Run
from lrft.optim import lr_schedule
from lrft.optim.named_state import rates, set_lr
from lrft.recipe import Recipe
from lrft.tracking.records import step_record
from lrft.training import diagnostics
from lrft.training.engine import Engine
from lrft.training.forward_backward import Passes, Told, forward_backward
from lrft.training.non_finite import refuse_endless_skips, refuse_non_finite
from lrft.training.sanity_checks import MovementCheck
from lrft.training.signals import StopSignals
from lrft.training.state import Adapted, Session
from lrft.training.validation import held_out_loss
from lrft.utils import hardware


@dataclass(frozen=True)
class Stepped:
    """Result of the optimiser step."""

    told: Told
    """the norm of the gradient is that before clipping"""
    gradients: dict[str, float]
    """gradient norms by role before clipping, for a logged step"""
    made: bool
    """False when fp16 loss scaling skipped the step"""


def train_step(
    session: Session, movement: MovementCheck, health: diagnostics.AdapterHealth, signals: StopSignals
) -> int:
    """One optimiser step. Returns the signal received by any process, or 0."""
    began = time.monotonic()
    engine, progress = session.engine, session.progress
    session.watchdog.step = progress.step
    session.watchdog.at("beginning")
    rows, ids = session.inputs.of_step(progress.step)
    lr = session.recipe.training.learning_rate * lr_factor(
        session.recipe, progress.step, session.inputs.batches.total_steps
    )
    run = begin(session, lr)
    passes = forward_backward(session, run, rows, ids, signals)
    unreached = movement.unreached(engine.reduce)
    shown = is_shown(progress.step, session.recipe.logging.every, run.total_steps)
    stepped = clip_and_step(
        engine,
        session.adapted,
        run,
        limit=session.recipe.training.max_grad_norm,
        passes=passes,
        refuse=partial(refuse_non_finite, step=progress.step + 1, rows=rows, ids=ids),
        shown=shown,
    )
    told = stepped.told
    progress.step += 1
    seen = int(rows.lengths[ids].sum())
    progress.tokens += seen
    refuse_endless_skips(progress, stepped.made)
    if stepped.made:
        movement.after_step(progress.step, unreached, rates(engine.optimizer), session.notes.checks)
    seconds = time.monotonic() - began
    adapters, warnings = health.look(stepped.gradients) if shown else ({}, [])
    for text in warnings:
        session.trackers.console.warn(text)
    record = step_record(
        step=progress.step,
        epoch=session.inputs.epochs(progress.step),
        tokens=progress.tokens,
        loss=told.loss,
        lr=lr,
        grad_norm=told.grad_norm,
        seconds=seconds,
        tokens_seen=seen,
        memory_gb=hardware.memory_gb(engine.device),
        regularisation=told.regularisation,
        figures=passes.figures,
        adapters=adapters,
    )
    session.trackers.log("step", record, shown=shown)
    return told.signal


def is_shown(step: int, every: int, total: int) -> bool:
    """Whether the step, counted from 0, has a line of its own."""
    return step % every == every - 1 or step in (0, total - 1)


def lr_factor(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate over the recipe's, at step `step` (from 0) of `total`."""
    t, s = recipe.training, recipe.training.lr_scheduler
    warmup = t.warmup_steps if t.warmup_steps is not None else math.ceil(round(t.warmup_ratio * total, 9))
    return lr_schedule.lr_factor(step, total, lr_schedule.Shape(**s.model_dump()), warmup=warmup)


def begin(session: Session, lr: float) -> Run:
    """Set learning rates and call `before_step`; returns the hooks' view of the step."""
    engine, adapted, seed = session.engine, session.adapted, session.recipe.training.seed
    composition = adapted.composition
    run = Run(
        session.progress.step,
        session.inputs.batches.total_steps,
        adapted.attached.model,
        adapted.attached.modules,
        engine.optimizer,
        seed,
        engine.reduce,
        learning_rate=session.recipe.training.learning_rate,
        fresh=partial(rebuild_site, composition=composition, seed=seed),
        held_out=partial(held_out_loss, session),
    )
    set_lr(engine.optimizer, lr, lambda site: composition.rate(run, site))
    for part in composition.parts:
        part.before_step(run)
    if composition.looks_at_outputs:
        engine.losses.extra = partial(composition.output_loss, run)
    return run


def clip_and_step(
    engine: Engine,
    adapted: Adapted,
    run: Run,
    *,
    limit: float | None,
    passes: Passes,
    refuse: Callable[..., None],
    shown: bool,
) -> Stepped:
    """Clip, let parts change the gradients, and step. refuse: raises for a loss or a norm that is not finite."""
    scaler: Any = engine.accelerator.scaler
    # Before clipping, which takes the loss scale of fp16 out of the gradients.
    scale = 1.0 if scaler is None else scaler.get_scale()
    gradients = diagnostics.gradient_norms(engine.strategy.gradients(), scale) if shown else {}

    told: list[Told] = []

    def clipped(norm: Tensor | float) -> None:
        told.append(passes.read(norm))
        refuse(told[0].loss, norm=told[0].grad_norm, scaled=scaler is not None)
        adapted.composition.after_backward(run)

    made = engine.strategy.step(limit, clipped)
    if made:
        adapted.composition.after_step(run)
    engine.strategy.clear()
    return Stepped(told[0], gradients, made)

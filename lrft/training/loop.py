"""The training run, as a line of named steps. No method is known here by name: parts act through their hooks."""

from __future__ import annotations

import math
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrft.adapters.attach import rebuild_site
from lrft.adapters.part import Run
from lrft.data.collate import micro_batches
from lrft.errors import NonFinite, Stopped
from lrft.optim import lr_schedule
from lrft.optim.optimizer import rates, set_lr
from lrft.training import diagnostics, sanity_checks
from lrft.training.checkpoint import save
from lrft.training.signals import StopSignals
from lrft.training.state import Trainer
from lrft.training.validation import has_patience, held_out_loss, validate
from lrft.utils import hardware, seeds

# Overflowing steps in a row under fp16: the loss scale starts at 2^16 and halves each time.
MOST_SKIPPED = 20


def loop(trainer: Trainer, signals: StopSignals) -> None:
    """Optimiser steps until the plan, early stopping or a signal ends them. Raises Stopped after a signal."""
    total, recipe, progress = trainer.plan.total_steps, trainer.recipe, trainer.progress
    evaluations = lr_schedule.interval(recipe.evaluation.every, total) if trainer.prepared.validation else None
    checkpoints = lr_schedule.interval(recipe.checkpoint.every, total)
    movement = sanity_checks.MovementCheck(
        trainer.attached, resumed=progress.step > 0, may_not_move=trainer.composition.may_not_move
    )
    trainer.reporter.begin(total, progress.step)
    if evaluations and recipe.evaluation.at_start and progress.step == 0:
        validate(trainer)
    trainer.model.train()
    signal, patient = 0, has_patience(trainer)  # a run that was stopped early stays so when it is resumed
    while progress.step < total and patient and not signal:
        signal = one_step(trainer, movement, signals)
        improved = False
        if lr_schedule.due(progress.step, evaluations, total):
            improved = validate(trainer)
            patient = has_patience(trainer)
        leaving = signal or not patient or progress.step == total
        if improved or leaving or lr_schedule.due(progress.step, checkpoints, total):
            save(trainer, best=improved)
    if signal:
        raise Stopped(
            f"stopped by signal {signal} after step {progress.step} of {total}; everything is saved",
            signal,
            "Go on with the same command and --resume.",
        )


def one_step(trainer: Trainer, movement: sanity_checks.MovementCheck, signals: StopSignals) -> int:
    """One optimiser step over the global batch. Returns the signal that some process has received, or 0.

    The loss is the sum over all trained tokens of the step, of all micro-batches and ranks, over their number.
    """
    began = time.monotonic()
    accelerator, optimizer, parts = trainer.accelerator, trainer.optimizer, trainer.composition.parts
    step, settings = trainer.progress.step, trainer.recipe.training
    trainer.watchdog.step = step
    trainer.watchdog.at("beginning")
    ids = trainer.plan.rows(step)
    tokens = sum(int(trainer.rows.trained(int(i)).sum()) for i in ids)
    lr = settings.learning_rate * lr_factor(trainer, step)
    run = Run(
        step,
        trainer.plan.total_steps,
        trainer.attached.model,
        trainer.attached.modules,
        optimizer,
        settings.seed,
        trainer.reduce,
        fresh=partial(rebuild_site, composition=trainer.composition, seed=settings.seed),
        held_out=partial(held_out_loss, trainer),
    )
    set_lr(optimizer, lr, lambda site: trainer.composition.rate(run, site))
    for part in parts:
        part.before_step(run)
    if trainer.composition.looks_at_outputs:
        trainer.losses.extra = partial(trainer.composition.output_loss, run)
    local = backward(trainer, ids, tokens)
    penalties = [term for part in parts if (term := part.loss(run)) is not None]
    penalty = torch.stack(penalties).sum() if penalties else None
    if penalty is not None:
        accelerator.backward(penalty)
    sums, signal = over_ranks(trainer, local, signals)
    loss = sums[0]
    added = {}
    if penalty is not None or trainer.losses.extra is not None:
        added = {"regularisation": sums[1] / tokens + (0.0 if penalty is None else penalty.item())}
    unreached = movement.unreached(trainer.reduce)
    logged = step % trainer.recipe.logging.every == trainer.recipe.logging.every - 1 or step in (0, run.total_steps - 1)
    # Before clipping, which takes the loss scale of fp16 out of the gradients.
    scaled = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
    gradients = diagnostics.gradient_norms(trainer.strategy.gradients(), scaled) if logged else {}

    def clipped(norm: float) -> None:
        refuse_non_finite(trainer, loss / tokens, norm, ids)
        trainer.composition.after_backward(run)

    norm, made = trainer.strategy.step(settings.max_grad_norm, clipped)
    if made:
        trainer.composition.after_step(run)
    trainer.strategy.clear()

    trainer.progress.step = step = step + 1
    trainer.progress.tokens += (seen := int(trainer.rows.lengths[ids].sum()))
    refuse_endless_skips(trainer, made)
    if made:
        movement.after_step(step, unreached, rates(optimizer), trainer.checks)
    seconds = time.monotonic() - began
    inside = inside_adapters(trainer, gradients) if logged else {}
    trainer.reporter.step(
        {
            "step": step,
            "epoch": round(step / trainer.plan.steps_per_epoch, 4),
            "tokens": trainer.progress.tokens,
            "loss": loss / tokens,
            "lr": lr,
            "grad_norm": norm,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(seen / seconds, 1),
            "memory_gb": round(hardware.memory_gb(accelerator.device), 3),
            **added,
            **inside,
        },
        logged=logged,
    )
    return signal


def inside_adapters(trainer: Trainer, gradients: dict[str, float]) -> dict[str, Any]:
    """For the log: gradient norm by role (before clipping) and update over weight by layer; warns where that is odd."""
    if not trainer.weight_squares:
        trainer.weight_squares = diagnostics.weight_squares(trainer.attached)
    shares = diagnostics.update_shares(trainer.attached, trainer.weight_squares)
    for text in diagnostics.warnings(trainer.shares, shares):
        trainer.reporter.warn(text)
    trainer.shares = shares
    return {"gradient": gradients, "update": shares}


def backward(trainer: Trainer, ids: np.ndarray, tokens: int) -> Tensor:
    """Forward and backward over this process's micro-batches.

    Returns the sums over this process of token losses and of what parts have added to them, float64 (2,).
    """
    accelerator, settings, step = trainer.accelerator, trainer.recipe.training, trainer.progress.step
    rank, world = accelerator.process_index, accelerator.num_processes
    micros = micro_batches(ids, trainer.rows.lengths, micro=trainer.micro, rank=rank, world=world)
    token_losses, added = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
    for n, micro in enumerate(micros):
        # Dropout is a function of (seed, step, rank, micro-batch): a resumed run has nothing to restore.
        torch.manual_seed(seeds.seed_of(settings.seed, "dropout", step, rank, n))
        # A rank without rows left goes through the motions with weight zero: the others wait for it.
        weight = 1.0 if micro else 0.0
        batch = trainer.collate(micro or [int(ids[0])])
        with trainer.strategy.of_pass(last=n == len(micros) - 1):
            trainer.watchdog.at(f"pass {n + 1} of {len(micros)}{', gradients at its end' * (n == len(micros) - 1)}")
            loss = trainer.answer(batch) * weight
            trainer.strategy.backward(loss * (world / tokens))  # gradients are means over ranks: world undoes it
        extra = trainer.losses.take_extra() * weight
        added += extra
        token_losses += loss.detach().double() - extra
    trainer.watchdog.at("exchanging gradients")
    trainer.strategy.after_passes()
    return torch.stack([token_losses, added])


def lr_factor(trainer: Trainer, step: int) -> float:
    t, total = trainer.recipe.training, trainer.plan.total_steps
    warmup = t.warmup_steps if t.warmup_steps is not None else math.ceil(round(t.warmup_ratio * total, 9))
    s = t.lr_scheduler
    return lr_schedule.lr_factor(
        step, total, name=s.name, warmup=warmup, min_lr_ratio=s.min_lr_ratio, decay_ratio=s.decay_ratio
    )


def over_ranks(trainer: Trainer, local: Tensor, signals: StopSignals) -> tuple[list[float], int]:
    """(`local` summed over ranks, the largest signal number that any rank has received): the same on every rank."""
    world, size = trainer.accelerator.num_processes, len(local)
    if world == 1:
        return local.tolist(), signals.received
    sums = torch.zeros(size + world, dtype=torch.float64, device=local.device)
    sums[:size] = local
    sums[size + trainer.accelerator.process_index] = signals.received
    sums = trainer.reduce(sums)
    return sums[:size].tolist(), int(sums[size:].max().item())


def refuse_non_finite(trainer: Trainer, loss: float, norm: float, ids: np.ndarray) -> None:
    """Raises NonFinite, naming the step and its rows, before anything is changed by it."""
    # With fp16 an overflowing gradient is ordinary: the loss scale shrinks and the step is skipped.
    scaled = trainer.accelerator.scaler is not None
    if math.isfinite(loss) and (math.isfinite(norm) or scaled):
        return
    what = f"the loss became {loss}" if not math.isfinite(loss) else f"the norm of the gradient became {norm}"
    rows = ", ".join(trainer.rows.source(int(i)) for i in ids[:5]) + (" ..." if len(ids) > 5 else "")
    raise NonFinite(
        f"{what} at step {trainer.progress.step + 1}. Earlier checkpoints are kept. Rows of this step: {rows}",
        "Lower training.learning_rate, or look at these rows.",
    )


def refuse_endless_skips(trainer: Trainer, made: bool) -> None:
    """Raises NonFinite when fp16's loss scale has fallen for many steps and the gradient still overflows."""
    progress = trainer.progress
    progress.skipped = 0 if made else progress.skipped + 1
    if progress.skipped >= MOST_SKIPPED:
        raise NonFinite(
            f"{progress.skipped} steps in a row were skipped: in fp16 the gradient is never finite. "
            "Earlier checkpoints are kept.",
            "Use training.precision: bf16 or fp32.",
        )

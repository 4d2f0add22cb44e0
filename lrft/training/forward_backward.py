"""The passes of a step: those of its own rows, and those that a part asks for when it composes the step's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrft.adapters.gradients import Gradients
from lrft.adapters.part import Run
from lrft.adapters.resting import copied
from lrft.data import Rows
from lrft.objectives.base import added_up, look_ahead
from lrft.objectives.figures import means
from lrft.training.engine import Engine
from lrft.training.signals import StopSignals
from lrft.training.state import Session
from lrft.utils import seeds
from lrft.utils.drawing import begin_drawing


@dataclass(frozen=True)
class Told:
    """What was read of a step's passes and of its gradient."""

    loss: float
    """mean over all that counts in the step"""
    regularisation: float | None
    """mean of what parts have added; None when no part adds anything"""
    signal: int
    """the largest signal number that some process has received, or 0"""
    grad_norm: float


@dataclass(frozen=True)
class Passes:
    """What the passes of a step have given, the same on every rank, where it was computed: a GPU is waited for once,
    when the norm of the gradient is there as well."""

    sums: Tensor
    """of losses, of what parts have added to them, and of the parts' penalties; then, of several ranks, the signal
    number that each has received: float64 (3 + n,)"""
    weight: float
    """of the step: the divisor of the first two sums"""
    adds: bool
    """whether parts add anything"""
    signal: int
    """the signal number that this process has received, or 0"""
    figures: dict[str, float]
    """those of the objective beside its loss"""

    def read(self, norm: Tensor | float) -> Told:
        """All at once, with the norm of the step's gradient."""
        of_gradient = norm.detach().to(self.sums).reshape(1) if isinstance(norm, Tensor) else self.sums[:0]
        values = torch.cat([self.sums, of_gradient]).tolist()
        known = values.pop() if isinstance(norm, Tensor) else norm
        loss, added, penalties, *signals = values
        regularisation = added / self.weight + penalties if self.adds else None
        return Told(loss / self.weight, regularisation, max(self.signal, *map(int, signals), 0), known)


@dataclass(frozen=True)
class Sums:
    """What the passes of a step add up to, on one rank or over all."""

    values: Tensor
    """of losses and of what parts have added to them, then of the noted sums end to end: float64 (2 + n,)"""
    shapes: dict[str, torch.Size]
    """of the noted sums, in their order: the same on every rank"""

    @property
    def noted(self) -> dict[str, Tensor]:
        parts = self.values[2:].split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}


def forward_backward(session: Session, run: Run, rows: Rows, ids: np.ndarray, signals: StopSignals) -> Passes:
    """The passes of all micro-batches, the parts' penalties, and the sums of both over all ranks. Then the gradient
    that a part composes from these and from passes of its own."""
    engine, owner = session.engine, session.adapted.composition.gradient_owner
    weight = engine.objective.weight(rows, ids)
    sums, penalty = passes_and_penalties(session, run, rows, ids, weight)
    received = signals.received  # once: a signal that comes later is one of the next step, on all ranks
    values, told = over_ranks(engine, sums.values, received)
    of_parts = values.new_zeros(1) if penalty is None else penalty.detach().double()[None]
    figures = figures_of(engine, replace(sums, values=values).noted)
    if owner is not None:
        passes = PassesOfStep(session, run, rows, ids)
        passes.put(owner.compose_gradient(run, passes.take(), passes))
    adds = penalty is not None or engine.losses.extra is not None
    return Passes(torch.cat([values[:2], of_parts, told]), weight, adds, received, figures)


def figures_of(engine: Engine, noted: Mapping[str, Tensor]) -> dict[str, float]:
    """The objective's figures of a step, and the mean loss of each source that has something in it."""
    apart = {name: noted[name] for name in engine.losses.sources if name in noted}
    return engine.objective.figures({k: v for k, v in noted.items() if k not in apart}) | means(apart)


def passes_and_penalties(
    session: Session, run: Run, rows: Rows, ids: np.ndarray, weight: float
) -> tuple[Sums, Tensor | None]:
    """`passes_of_rank` over the step's own rows, and the backward pass of the parts' penalties: their sum, or None."""
    engine = session.engine
    sums = passes_of_rank(engine, rows, ids, weight, seed=run.seed, step=run.step)
    penalties = [term for part in session.adapted.composition.parts if (term := part.loss(run)) is not None]
    if not penalties:
        return sums, None
    penalty = torch.stack(penalties).sum()
    engine.accelerator.backward(penalty)
    return sums, penalty


def passes_of_rank(
    engine: Engine, rows: Rows, ids: np.ndarray, weight: float, *, seed: int, step: int, purpose: str = "dropout"
) -> Sums:
    """Forward and backward over this process's micro-batches of the rows `ids`, which count `weight` in all.

    Returns the sums over this process. purpose: of the random numbers that are drawn in the passes.
    """
    micros = engine.passes(rows, ids)
    losses, added = torch.zeros(2, dtype=torch.float64, device=engine.device)
    noted: dict[str, Tensor] = {}
    # A rank without rows left goes through the motions with weight zero: the others wait for it.
    given = [(micro or [int(ids[0])], bool(micro)) for micro in micros]
    asked = ((engine.batch(rows, some), counts) for some, counts in given)
    look_ahead(engine.losses, asked, engine.reduce, rank=engine.rank, world=engine.world)
    for n, (micro, counting) in enumerate(given):
        last = n == len(micros) - 1
        # Dropout is a function of (seed, step, rank, micro-batch): a resumed run has nothing to restore.
        begin_drawing(seeds.seed_of(seed, purpose, step, engine.rank, n), gpu=engine.device.type == "cuda")
        counts = 1.0 if counting else 0.0
        batch = engine.batch(rows, micro)
        with engine.strategy.of_pass(last=last):
            engine.watchdog.at(f"pass {n + 1} of {len(micros)}{', gradients at its end' * last}")
            loss = engine.answer(batch) * counts
            engine.strategy.backward(loss * (engine.world / weight))  # gradients are means over ranks: world undoes it
        extra = engine.losses.take_extra() * counts
        added += extra
        losses += loss.detach().double() - extra
        noted = added_up(noted, engine.losses.sums, counts)
    engine.losses.ahead, engine.losses.gathered = None, {}
    engine.watchdog.at("exchanging gradients")
    engine.strategy.after_passes()
    values = torch.cat([torch.stack([losses, added]), *(value.flatten() for value in noted.values())])
    return Sums(values, {name: value.shape for name, value in noted.items()})


def over_ranks(engine: Engine, local: Tensor, signal: int) -> tuple[Tensor, Tensor]:
    """(`local` summed over ranks, the signal number that each rank has received, of several): alike on every rank."""
    size = len(local)
    if engine.world == 1:
        return local, local[:0]
    sums = torch.zeros(size + engine.world, dtype=torch.float64, device=local.device)
    sums[:size] = local
    sums[size + engine.rank] = signal
    sums = engine.reduce(sums)
    return sums[:size], sums[size:]


class PassesOfStep:
    """The `StepPasses` of one step."""

    def __init__(self, session: Session, run: Run, rows: Rows, ids: np.ndarray) -> None:
        self.session, self.engine, self.run, self.rows, self.ids = session, session.engine, run, rows, ids
        self.trained = session.adapted.attached.trained().values()

    @property
    def scale(self) -> float:
        """The loss scale of fp16, a power of two: dividing by it rounds nothing."""
        scaler: Any = self.engine.accelerator.scaler
        return 1.0 if scaler is None else float(scaler.get_scale())

    def take(self) -> Gradients:
        """The gradients that the last passes have left, out of the tensors: the next passes begin without any."""
        found = {p: p.grad / self.scale for p in self.trained if p.grad is not None}
        for p in self.trained:
            p.grad = None
        return found

    def put(self, gradients: Gradients) -> None:
        for p, gradient in gradients.items():
            p.grad = gradient.to(p.dtype) * self.scale

    def own(self) -> Gradients:
        weight = self.engine.objective.weight(self.rows, self.ids)
        passes_and_penalties(self.session, self.run, self.rows, self.ids, weight)
        return self.take()

    def auxiliary(self) -> Gradients:
        rows, batches = self.session.inputs.auxiliary, self.session.inputs.auxiliary_batches
        if rows is None or batches is None:
            raise ValueError("this run has no auxiliary rows")
        ids, losses = batches.rows(self.run.step), self.engine.losses
        extra, losses.extra = losses.extra, None
        weight = self.engine.objective.weight(rows, ids)
        passes_of_rank(self.engine, rows, ids, weight, seed=self.run.seed, step=self.run.step, purpose="auxiliary")
        losses.extra = extra
        return self.take()

    @contextmanager
    def stepped(self, gradients: Gradients) -> Iterator[None]:
        optimizer = self.engine.optimizer.optimizer  # torch's own: Accelerate's would look at the loss scale
        before = {p: p.detach().clone() for p in gradients}
        states = {p: copied(optimizer.state[p]) for p in gradients if p in optimizer.state}
        for p, gradient in gradients.items():
            p.grad = gradient.to(p.dtype)
        optimizer.step()
        torch.autograd.graph.increment_version(list(gradients))
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in before.items():
                    p.copy_(value)
                    optimizer.state.pop(p, None)
            optimizer.state.update(states)

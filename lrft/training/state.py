"""State of a training run: results of the set-up phases, and mutable progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lrft.adapters.attached import Attached
from lrft.adapters.compose import Composition
from lrft.data import BatchSchedule, Prepared, Rows
from lrft.distributed.watchdog import Watchdog
from lrft.loading.evaluation_interval import evaluation_interval
from lrft.loading.metrics import Metrics
from lrft.loading.others import Found
from lrft.model.stored import Stored
from lrft.objectives.packing import ROWWISE
from lrft.runs.folder import RunFolder
from lrft.tracking.fan_out import Trackers
from lrft.training.engine import Engine

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lrft.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """Command-line options of `lrft train`. `resume`: None, last, best or a path. `source`: the recipe's file."""

    resume: str | None = None
    fresh: bool = False
    accept_changes: bool = False
    quiet: bool = False
    source: Path | None = None
    allow_code: bool = False
    """whether functions of the user's files may be run"""


@dataclass(frozen=True)
class Inputs:
    """Phase 1: data. Created before any process group."""

    source: Path
    """folder of the base model"""
    tokenizer: Any
    prepared: Prepared
    batches: BatchSchedule
    """the rows of each optimiser step"""
    auxiliary_batches: BatchSchedule | None = None
    """the auxiliary rows of each optimiser step"""
    others: Sequence[Found] = ()
    """the models that the objective's options name"""
    metrics: Metrics = field(default_factory=lambda: Metrics((), ()))
    sets: Mapping[str, Rows] = field(default_factory=dict)
    """further validation rows, by name"""

    def of_step(self, step: int) -> tuple[Rows, np.ndarray]:
        """A set, and the ids of the rows of optimiser step `step` in it. A stream gives its next ones."""
        if self.prepared.stream is None:
            return self.train, self.batches.rows(step)
        rows = self.prepared.stream.take(self.batches.global_batch)
        return rows, np.arange(len(rows))

    def epochs(self, step: int) -> float:
        """How many times the rows have come after `step` steps: of a stream, whole times."""
        stream = self.prepared.stream
        return step / self.batches.steps_per_epoch if stream is None else float(stream.epoch)

    @property
    def train(self) -> Rows:
        """The rows to train on; the first of them where they are streamed."""
        return self.prepared.train

    @property
    def validation(self) -> Rows | None:
        return self.prepared.validation

    @property
    def auxiliary(self) -> Rows | None:
        return self.prepared.auxiliary


@dataclass(frozen=True)
class Base:
    """Phase 2: the frozen model on its device, sharded if the strategy requires it."""

    model: Any
    accelerator: Accelerator
    compute: str
    """fp32, bf16 or fp16"""
    strategy: str
    """ddp, fsdp or zero2"""
    info: dict[str, Any]
    """name, revision, fingerprint, dtype and quantization, as recorded in adapter folders"""
    stored: Stored
    """names of its weights in its files"""
    placement: str = "resident"
    """resident or streamed"""
    fused: int = 0
    """modules that compute with kernels of `training.kernels`"""


@dataclass(frozen=True)
class Adapted:
    """Phase 3: the attached adapters, initialised or with the shapes of a checkpoint."""

    attached: Attached
    composition: Composition
    resumed_from: Path | None
    """checkpoint to resume from"""
    unmergeable: str
    """why the adapters cannot be merged into the base's files; "" when they can"""
    left_out: list[str] = field(default_factory=list)
    """targeted linear layers without an adapter, as sentences"""
    sometimes: frozenset[str] = frozenset()
    """names of layers that some rows reach and others do not"""
    started: str = ""
    """what was taken over from the adapter of adapter.start_from"""


@dataclass
class Progress:
    """Non-tensor state of a checkpoint: plain numbers."""

    step: int = 0
    """optimiser steps done"""
    tokens: int = 0
    """tokens seen, prompts included"""
    start_loss: float | None = None
    """validation loss before the first step"""
    best_loss: float | None = None
    """the least validation loss, that of the start included; of the best state where evaluation.best is a metric"""
    best_score: float | None = None
    """what evaluation.best says of that state, the lower the better, when that is not the loss"""
    best_step: int | None = None
    """0: no trained state was better than the start"""
    last_loss: float | None = None
    """the newest validation loss of a trained state"""
    stale_loss: float | None = None
    """reference of early stopping: a loss, or a score that is the better the lower"""
    stale: int = 0
    """evaluations since it last improved by min_delta"""
    skipped: int = 0
    """steps in a row that fp16 has skipped"""


@dataclass
class Notes:
    """Messages about the set-up for the user."""

    warnings: list[str] = field(default_factory=list)
    checks: dict[str, str] = field(default_factory=dict)
    """verified properties, as sentences"""


@dataclass
class Session:
    """A run: the four phases of `setup.set_up`, and its progress."""

    recipe: Recipe
    options: Options
    inputs: Inputs
    base: Base
    adapted: Adapted
    engine: Engine
    """phase 4: engine for forward, backward and optimiser steps"""
    notes: Notes
    progress: Progress = field(default_factory=Progress)
    folder: RunFolder | None = None
    """None on every process but the first"""
    trackers: Trackers = field(default_factory=Trackers.silent)
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, 1, None))

    @property
    def chosen(self) -> dict[str, Any]:
        """Values chosen for keys set to auto, by dotted key."""
        decided = {
            "training.precision": self.base.compute,
            "model.precision": self.base.info["dtype"],
            "model.placement": self.base.placement,
            "model.attention": attention_of(self.base.model),
            "data.packing": self.engine.layout.packed,
            "training.micro_batch_size": self.engine.micro,
            **({} if self.engine.tokens is None else {"training.micro_batch_tokens": self.engine.tokens}),
            "distributed.strategy": self.base.strategy,
        }
        if self.recipe.where("data.max_length") == "default":  # the model can have fewer positions
            decided["data.max_length"] = self.inputs.prepared.report.max_length
        if self.recipe.evaluation.every == "auto":
            every = evaluation_interval(self.recipe, self.inputs.prepared, self.inputs.batches)
            decided |= {} if every is None else {"evaluation.every": every}
        return decided


def attention_of(model: Any) -> str:
    """The attention kernel that transformers chose, as a recipe names it."""
    name = str(model.config._attn_implementation)
    return "sdpa" if name == ROWWISE else name

"""What a training run holds while it goes on."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrft.adapters.attached import Attached
from lrft.adapters.compose import Composition
from lrft.data import BatchSchedule, Prepared, Rows
from lrft.data.collate import collate
from lrft.distributed.strategy import Strategy
from lrft.distributed.watchdog import Watchdog
from lrft.evaluation.generate import pad_token
from lrft.model.activation_offload import offloading
from lrft.objectives.packing import ROWWISE, Layout
from lrft.objectives.sft import TokenLoss
from lrft.runs.folder import RunFolder
from lrft.tracking.console import Reporter
from lrft.training import summary

if TYPE_CHECKING:
    from accelerate import Accelerator

    from lrft.recipe import Recipe


@dataclass(frozen=True)
class Options:
    """How `lrft train` was called. `resume`: None, last, best or a path. `source`: the recipe's file."""

    resume: str | None = None
    fresh: bool = False
    accept_changes: bool = False
    quiet: bool = False
    source: Path | None = None


@dataclass
class Progress:
    """What a checkpoint must hold beside tensors: plain numbers."""

    step: int = 0
    """optimiser steps done"""
    tokens: int = 0
    """tokens seen, prompts included"""
    start_loss: float | None = None
    """validation loss before the first step"""
    best_loss: float | None = None
    best_step: int | None = None
    stale_loss: float | None = None
    """the loss that early stopping compares with"""
    stale: int = 0
    """evaluations since it was last beaten by min_delta"""
    skipped: int = 0
    """steps in a row that fp16 has skipped"""


@dataclass
class Trainer:
    """Everything that one run needs, made by `setup.set_up`."""

    recipe: Recipe
    options: Options
    compute: str
    """fp32, bf16 or fp16"""
    base_info: dict[str, Any]
    """name, revision, fingerprint, dtype of the base"""
    prepared: Prepared
    tokenizer: Any
    accelerator: Accelerator
    attached: Attached
    composition: Composition
    strategy: Strategy
    """how processes share a step"""
    losses: TokenLoss
    """answers a batch with its loss; `attached.model` is the language model inside"""
    layout: Layout
    plan: BatchSchedule
    micro: int
    """rows of a pass: the recipe's, or as many as fit"""
    warnings: list[str]
    checks: dict[str, str]
    """what was proven, in words"""
    progress: Progress = field(default_factory=Progress)
    shares: dict[str, float] = field(default_factory=dict)
    """update over weight at the last log, by layer"""
    weight_squares: dict[str, float] = field(default_factory=dict)
    """squared norms of the frozen weights, by layer; made at the first log"""
    folder: RunFolder | None = None
    """None on every process but the first"""
    resumed_from: Path | None = None
    """the checkpoint that is taken up"""
    reporter: Reporter = field(default_factory=lambda: Reporter(None, main=False))
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0, 1, None))

    @property
    def model(self) -> nn.Module:
        """`losses`, or a distributed wrapper around them."""
        return self.strategy.model

    @property
    def optimizer(self) -> Any:
        return self.strategy.optimizer

    @property
    def rows(self) -> Rows:
        return self.prepared.train

    @property
    def packed(self) -> bool:
        return self.layout.packed

    @property
    def chosen(self) -> dict[str, Any]:
        """What this run has decided where the recipe leaves it open, by dotted key."""
        decided = {
            "training.precision": self.compute,
            "model.precision": self.base_info["dtype"],
            "model.attention": attention_of(self.attached.model),
            "data.packing": self.layout.packed,
            "training.micro_batch_size": self.micro,
            "distributed.strategy": self.strategy.name,
        }
        if self.recipe.where("data.max_length") == "default":  # the model can have fewer positions
            decided["data.max_length"] = self.prepared.report.max_length
        return decided

    def reduce(self, tensor: Tensor) -> Tensor:
        """Sum over all processes."""
        with self.watchdog.during("adding up over all processes"):
            total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    def answer(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a micro-batch, for a backward pass."""
        with offloading(self.accelerator.device) if self.recipe.training.activation_offload else nullcontext():
            loss: Tensor = self.model(batch)
        return loss

    def collate(self, ids: list[int]) -> dict[str, Tensor]:
        """A micro-batch on this process's device."""
        batch = collate(self.rows, ids * self.losses.copies(), pad_id=pad_token(self.tokenizer), form=self.layout.form)
        return {name: value.to(self.accelerator.device) for name, value in batch.items()}

    @property
    def evaluation_micro(self) -> int:
        return self.recipe.evaluation.micro_batch_size or self.micro

    def describe(self) -> None:
        """Write run.json: what is known of the run so far."""
        if self.folder is not None:
            self.folder.describe(summary.facts(self))


def attention_of(model: Any) -> str:
    """The attention kernel that transformers chose, as a recipe names it."""
    name = str(model.config._attn_implementation)
    return "sdpa" if name == ROWWISE else name

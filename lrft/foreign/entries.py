"""What a table says about a key of another tool: where it goes, why nothing is lost, or why it is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class To(NamedTuple):
    """The key goes to `key` of a recipe, changed by the conversion `how` (lrft/moving/conversions.py), which is given
    `by`. An option stands behind its owner's key: training.objective.beta; keys in `SAYS` are no keys themselves, but
    give one together with others. says: how an error message names the place, where that is more than `key`."""

    key: str
    how: str = "same"
    by: Any = None
    says: str = ""


class Needless(NamedTuple):
    """Nothing is lost without the key."""

    reason: str


class Missing(NamedTuple):
    """A recipe has no counterpart."""

    reason: str


Entry = To | Needless | Missing
Table = Mapping[str, Entry]

_OBJECTIVE = "training.objective: sft, dpo, simpo, orpo, cpo, kto or reward"
_BETA = "training.objective: {dpo: {beta: ...}}, and the same of simpo, orpo, cpo and kto"
_TRACKER = "logging.report_to: [{%s: {project: ..., run_name: ...}}]"

# What error messages say of a place that is an option, or no key of its own.
SAYS: Mapping[str, str] = {
    "batch.per_device": "training.micro_batch_size",
    "batch.accumulation": "training.global_batch_size",
    "batch.devices": "training.global_batch_size",
    "batch.nodes": "training.global_batch_size",
    "batch.passes": "training.max_steps",
    "batch.global": "training.global_batch_size",
    "evaluation.per_epoch": "evaluation.every",
    "evaluation.strategy": "evaluation.every",
    "checkpoint.per_epoch": "checkpoint.every",
    "checkpoint.strategy": "checkpoint.every",
    "data.train.limit": "data.train.limit, of each entry",
    "distributed.strategy": "distributed.strategy: auto, ddp, fsdp or zero2",
    "training.objective": _OBJECTIVE,
    "training.objective.beta": _BETA,
    "training.objective.loss": "training.objective: {dpo: {loss: ...}}",
    "training.objective.rpo_alpha": "training.objective: {dpo: {rpo_alpha: ...}}",
    "training.objective.label_smoothing": "training.objective: {sft: {label_smoothing: ...}}",
    "training.objective.gamma": "training.objective: {simpo: {gamma: ...}}",
    "training.objective.alpha": "training.objective: {cpo: {alpha: ...}}",
    "training.objective.teacher": "training.objective: {distill: {teacher: ...}}",
    "training.objective.problem": "training.objective: {classification: {problem: ...}}",
    "training.objective.desirable_weight": "training.objective: {kto: {desirable_weight: ...}}",
    "training.objective.undesirable_weight": "training.objective: {kto: {undesirable_weight: ...}}",
    "training.objective.router_aux_loss_coef": "training.objective: {sft: {router_aux_loss_coef: ...}}",
    "training.objective.z_loss": "training.objective: {sft: {z_loss: ...}}",
    "training.optimizer.beta1": "training.optimizer: {adamw: {betas, eps}}",
    "training.optimizer.beta2": "training.optimizer: {adamw: {betas, eps}}",
    "training.optimizer.eps": "training.optimizer: {adamw: {betas, eps}}",
    "training.optimizer.betas": "training.optimizer: {adamw: {betas, eps}}",
    "training.lr_scheduler.options": "training.lr_scheduler: {NAME: {option: value}}",
    "training.lr_scheduler.min_lr_ratio": "training.lr_scheduler: {NAME: {option: value}}",
    **{
        f"logging.report_to.{tracker}.{option}": _TRACKER % tracker
        for tracker in ("wandb", "mlflow", "comet_ml", "swanlab", "trackio")
        for option in ("project", "run_name", "entity", "workspace", "space_id")
    },
}


def place(entry: To) -> str:
    """The place of `entry` in the words of an error message."""
    return entry.says or SAYS.get(entry.key, entry.key)

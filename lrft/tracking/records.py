"""The record of an optimiser step, as metrics.jsonl and every tracker have it."""

from __future__ import annotations

from typing import Any


def step_record(
    *,
    step: int,
    epoch: float,
    tokens: int,
    loss: float,
    lr: float,
    grad_norm: float,
    seconds: float,
    tokens_seen: int,
    memory_gb: float,
    regularisation: float | None = None,
    figures: dict[str, float] | None = None,
    adapters: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """step counts from 1; tokens are those of the run so far, tokens_seen those of this step, prompts included.

    loss            mean over what the objective counts, over the whole global batch
    grad_norm       before clipping
    memory_gb       peak so far
    regularisation  what parts have added to the loss
    figures         those of the objective beside its loss, by name
    adapters        {"gradient": norm by role, "update": update over weight by layer}, of a step that is shown
    """
    record: dict[str, Any] = {
        "step": step,
        "epoch": round(epoch, 4),
        "tokens": tokens,
        "loss": loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens_seen / seconds, 1),
        "memory_gb": round(memory_gb, 3),
    }
    if regularisation is not None:
        record["regularisation"] = regularisation
    if figures:
        record["figures"] = figures
    return record | (adapters or {})

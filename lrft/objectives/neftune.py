"""Noise on the embeddings in training. NEFTune: Jain et al., 2023, arXiv 2310.05914, algorithm 1.

Uniform in [-1, 1] times alpha / sqrt(L d), L the tokens of the row and d the width. It is drawn after the seed of the
pass (`lrft.training.forward_backward`): the same again in a resumed run, and different in each process's own rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lrft.objectives.base import LossModule


def row_lengths(batch: Mapping[str, Tensor]) -> Tensor:
    """Tokens of the row that each token of a batch (B, T) belongs to, 0 for padding: int64 (B, T)."""
    ids, mask, positions = batch["input_ids"], batch.get("attention_mask"), batch.get("position_ids")
    if positions is not None:
        row = (positions == 0).flatten().cumsum(0)
        return row.bincount()[row].view_as(ids)
    if mask is None:
        return torch.full_like(ids, ids.shape[1])
    return mask * mask.sum(dim=1, keepdim=True)


def noise(lengths: Tensor, like: Tensor, alpha: float) -> Tensor:
    """For embeddings `like` (B, T, d) of rows of these lengths (B, T)."""
    scale = alpha / (lengths * like.shape[-1]).clamp_min(1).sqrt()
    drawn = torch.rand(like.shape, dtype=torch.float32, device=like.device) * 2 - 1
    return (drawn * (scale * (lengths > 0))[..., None]).to(like.dtype)


def add_noise(losses: LossModule, alpha: float) -> None:
    """From now on a training pass of `losses` adds noise to the embeddings of its batch. Reference models and
    evaluation get none."""
    lengths: list[Tensor] = []

    def note(module: Any, inputs: tuple[Mapping[str, Tensor]]) -> None:
        lengths[:] = [row_lengths(inputs[0])]

    def disturb(module: Any, inputs: tuple[Tensor], output: Tensor) -> Tensor | None:
        if not losses.training or not torch.is_grad_enabled():
            return None
        return output + noise(lengths[0], output, alpha)

    losses.register_forward_pre_hook(note)
    model: Any = losses.model
    model.get_input_embeddings().register_forward_hook(disturb)

"""Batches on their way to a GPU: without waiting for it, and with the answers that it would be asked for later.

A copy from ordinary memory makes the machine wait until the GPU has done all its work. One from pinned memory is queued
behind that work. What a pass has to know of a batch in numbers (how long rows are, where labels stand) is counted here,
where the batch still lies in the machine's memory.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lrft.model.packed_attention import are_ends, row_lengths
from lrft.model.send import send
from lrft.objectives.cross_entropy import trained_places


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on `device`. On a GPU labels know their `trained_places`, a mask of rows' ends its `row_lengths`."""
    sent = {name: send(value, device) for name, value in batch.items()}
    if device.type == "cuda":
        labels, mask = batch.get("labels"), batch.get("attention_mask")
        if labels is not None and labels.ndim == 2:
            places = tuple(send(at, device) for at in trained_places(labels))
            sent["labels"].places = places  # type: ignore[attr-defined]
        if mask is not None and are_ends(mask):
            sent["attention_mask"].row_lengths = row_lengths(mask)  # type: ignore[attr-defined]
    return sent

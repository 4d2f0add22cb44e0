"""Tensors on their way to a GPU, without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def send(value: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`. A copy to a GPU from pinned memory is queued behind its other work; any other makes the
    machine wait until all of that is done."""
    queued = device.type == "cuda" and value.device.type == "cpu"
    return value.pin_memory().to(device, non_blocking=True) if queued else value.to(device)

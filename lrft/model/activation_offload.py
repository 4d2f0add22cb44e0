"""Activation offloading to CPU memory until the backward pass.

With full checkpointing that is the input of each block; without any, everything. Weights are not moved: they are where
they are anyway. Nor are small tensors, and what light and medium checkpointing play back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Bytes from which moving a tensor is worth its trouble.
LEAST = 2**20


class Moved:
    """A tensor that lies in the machine's memory, and where it came from."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        # Copies of one stream come in their order: nobody needs to wait for this one.
        pinned = tensor.device.type == "cuda"
        # With the same strides: another layout would be multiplied in another order.
        self.here = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self.here.copy_(tensor, non_blocking=pinned)

    def back(self) -> Tensor:
        return self.here.to(self.device, non_blocking=True)


def offloading(device: torch.device, least: int = LEAST) -> saved_tensors_hooks:
    """A context for a forward pass on `device`. least: bytes of the smallest tensor that is moved."""

    def pack(tensor: Tensor) -> Any:
        whole = tensor._base if tensor._base is not None else tensor
        large = tensor.numel() * tensor.element_size() >= least
        moves = large and tensor.device == device and not isinstance(whole, nn.Parameter)
        return Moved(tensor) if moves else tensor

    return saved_tensors_hooks(pack, lambda kept: kept.back() if isinstance(kept, Moved) else kept)

"""Activation offloading to CPU memory until the backward pass.

With full checkpointing that is the input of each block; without any, everything. Weights are not moved: they are where
they are anyway. Nor are small tensors, and what light and medium checkpointing play back.

On a GPU copies go both ways on a stream of their own, between pinned memory and the device, while the passes compute:
out as soon as a tensor is made, and back one tensor before it is asked for, last made first.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

# Bytes from which moving a tensor is worth its trouble.
LEAST = 2**20


class Moved:
    """A tensor that lies in the machine's memory, and where it came from."""

    def __init__(self, tensor: Tensor, before: Moved | None = None) -> None:
        """before: the one that was moved before it, which will be asked for after it."""
        self.device, self.before = tensor.device, before
        self.coming: tuple[Tensor, Any] | None = None
        """on a GPU: the tensor on its way back, and the event of its arrival"""
        # With the same strides: another layout would be multiplied in another order.
        self.here = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        if tensor.device.type != "cuda":
            self.here.copy_(tensor)
            return
        lane = lane_of(tensor.device)
        lane.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(lane):
            self.here.copy_(tensor, non_blocking=True)
        tensor.record_stream(lane)  # its memory is not given to another before it is copied

    def back(self) -> Tensor:
        if self.device.type != "cuda":
            return self.here.to(self.device)
        self.fetch()
        assert self.coming is not None
        (tensor, arrived), self.coming = self.coming, None
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        tensor.record_stream(current)
        if self.before is not None:
            self.before.fetch()
            self.before = None
        return tensor

    def fetch(self) -> None:
        """Start the way back, unless it has begun."""
        if self.coming is None:
            lane = lane_of(self.device)
            with torch.cuda.stream(lane):
                tensor = self.here.to(self.device, non_blocking=True)
                self.coming = tensor, lane.record_event()


@lru_cache(maxsize=8)
def lane_of(device: torch.device) -> Any:
    """The stream of a GPU's copies."""
    return torch.cuda.Stream(device)


def offloading(device: torch.device, least: int = LEAST) -> saved_tensors_hooks:
    """A context for a forward pass on `device`. least: bytes of the smallest tensor that is moved."""
    last: list[Moved] = []

    def pack(tensor: Tensor) -> Any:
        whole = tensor._base if tensor._base is not None else tensor
        large = tensor.numel() * tensor.element_size() >= least
        # A process has one GPU: "cuda" without a number is the "cuda:0" of its tensors.
        if not large or tensor.device.type != device.type or isinstance(whole, nn.Parameter):
            return tensor
        last[:] = [Moved(tensor, last[0] if last else None)]
        return last[0]

    return saved_tensors_hooks(pack, lambda kept: kept.back() if isinstance(kept, Moved) else kept)

"""Accelerate: devices, processes and autocast."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(compute: str) -> Accelerator:
    """Accelerate, for devices, processes and autocast. Gradients are accumulated by the loop, which counts tokens."""
    from accelerate import Accelerator

    precision = {"fp32": "no"}.get(compute, compute)
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())

"""First values that several methods share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def kaiming(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) uniform in +-1/sqrt(columns), Kaiming's rule with a = sqrt(5). From the global generator."""
    return nn.init.kaiming_uniform_(torch.empty(rows, columns, dtype=dtype), a=math.sqrt(5))

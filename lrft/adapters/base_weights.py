"""Weights of the base, for what is counted from them when a folder of PEFT is read or written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lrft.adapters.adapter import AdapterLinear, Site
from lrft.model import linear

Stored = Callable[[Site], Tensor]
"""the weight (d, k) of a site in the base's files"""


def weight_of(site: Site, layer: Any, stored: Stored | None) -> Tensor:
    """(d, k) in float32 on the CPU. layer: the model's. Raises ValueError for one without weights where `stored` is
    None."""
    if stored is not None:
        return stored(site).float()
    layer = layer.base if isinstance(layer, AdapterLinear) else layer
    if any(p.is_meta for p in layer.parameters()):
        raise ValueError("PEFT counts what its file leaves out from the base's weights, which are not here")
    return linear.dense(layer).float().cpu()

"""Uniform access to linear layers: W of shape (d, k) = (outputs, inputs), for every storage layout.

`nn.Linear` stores (d, k). GPT-2's `Conv1D` stores the transpose (k, d): reading it as (d, k) unnoticed merges a
square layer silently wrong, so every read goes through these functions. A `QuantizedLinear` stores codes, and makes W
when it is asked. A `PrunedLinear` trains with a part of W, and W is all of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model import pruned
from lrft.model.experts import ExpertLinear
from lrft.model.pruned import PrunedLinear
from lrft.model.quantized import QuantizedLinear
from lrft.model.streamed import content
from lrft.utils.divided import whole


def is_transposed(module: nn.Module) -> bool:
    """True for transformers' Conv1D, and for an expert of a stack that is stored so. (An instance of the first can only
    exist when its module has been imported.)"""
    if isinstance(module, ExpertLinear):
        return module.transposed
    conv1d = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return conv1d is not None and isinstance(module, conv1d)


def is_linear(module: nn.Module) -> bool:
    if isinstance(module, QuantizedLinear):
        return module.is_layer
    return isinstance(module, nn.Linear | PrunedLinear | ExpertLinear) or is_transposed(module)


def named_linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every linear layer below `model` by its dotted name, in the model's order.

    Not `model` itself: it has no parent in which another layer could take its place.
    """
    return ((name, module) for name, module in model.named_modules() if name and is_linear(module))


def shape(module: Any) -> tuple[int, int]:
    """(d, k): outputs, inputs."""
    if isinstance(module, QuantizedLinear | PrunedLinear):
        return module.shape
    rows, columns = module.weight.shape
    return (columns, rows) if is_transposed(module) else (rows, columns)


def as_rows(weight: Tensor, transposed: bool) -> Tensor:
    """The stored weight as (d, k), or a (d, k) weight as it is stored. A view; its own inverse."""
    return weight.T if transposed else weight


def dtype(module: Any) -> torch.dtype:
    """The dtype in which the layer computes."""
    if isinstance(module, PrunedLinear):
        return module.dtype
    found: torch.dtype = module.like.dtype if isinstance(module, QuantizedLinear) else module.weight.dtype
    return found


def stored_transposed(module: Any) -> bool:
    """Whether the base's files, and PEFT, have (k, d) for it. A quantised layer has turned what it was made from."""
    return module.transposed if isinstance(module, QuantizedLinear) else is_transposed(module)


def rows(module: Any) -> Tensor:
    """W as (d, k) in the layer's own dtype: its own memory, or made anew where the layer is quantised."""
    if isinstance(module, PrunedLinear):
        return module.whole.weight.to(module.device, module.dtype)
    stacked = isinstance(module, ExpertLinear)
    weight = content(module.stack, module.expert) if stacked else content(module.weight)
    return as_rows(weight, is_transposed(module))


def dense(module: Any) -> Tensor:
    """W as (d, k) in at least float32, detached. The layer's own memory when no cast is needed: do not write to it.

    Of a weight that is divided over processes this is a copy, and all of them must ask for it.
    """
    if isinstance(module, QuantizedLinear):
        return module.made(torch.promote_types(dtype(module), torch.float32))
    if isinstance(module, PrunedLinear):
        return pruned.dense(module)
    weight = whole(rows(module).detach())
    return weight if weight.dtype == torch.float64 else weight.float()


def product(module: Any, x: Tensor) -> Tensor:
    """W x for x (..., k), without the bias, in the layer's own precision; a quantised layer's is that of x. A pruned
    layer's is that of its part in training."""
    if isinstance(module, QuantizedLinear | PrunedLinear):
        return module.product(x)
    return nn.functional.linear(x, rows(module))

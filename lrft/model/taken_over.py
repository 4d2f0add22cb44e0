"""Layers of bitsandbytes, as transformers loads them, become layers of the same codes that are made here."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from lrft.errors import UsageError
from lrft.model.quantized import QuantizedLinear, blocks_of, dtype_of, of_state, replace_modules


def take_over(model: nn.Module) -> None:
    """Every layer of bitsandbytes in `model` becomes a `QuantizedLinear` of the same codes, in place."""
    if "bitsandbytes" not in sys.modules:  # then there cannot be one
        return
    dtype = dtype_of(model)
    replace_modules(model, lambda _, module: _taken(module, dtype) if _is_foreign(module) else None)


def _is_foreign(module: nn.Module) -> bool:
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    if isinstance(module, Linear8bitLt):  # with has_fp16_weights it is an ordinary layer that rounds as it goes
        return module.weight.dtype == torch.int8
    return isinstance(module, Linear4bit)


def _taken(layer: Any, dtype: torch.dtype) -> QuantizedLinear:
    from bitsandbytes.nn import Linear4bit
    from transformers.pytorch_utils import Conv1D

    transposed = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
    shape = (layer.out_features, layer.in_features)
    weight: Any = layer.weight
    stored = weight.data.as_subclass(Tensor)
    if not isinstance(layer, Linear4bit):
        # The scales lie in the weight until the first forward pass, and in the layer's state afterwards.
        scales = weight.SCB if weight.SCB is not None else layer.state.SCB
        tensors = {"codes": stored, "scales": scales.flatten()}
        return QuantizedLinear("int8", shape, tensors, layer.bias, dtype=dtype, transposed=transposed)
    state = weight.quant_state
    if state is None:
        raise UsageError(
            "this model's 4-bit layers are not quantised yet", "Move it to its device first: model.to(...)."
        )
    if getattr(state, "packing_format_for_cpu", False):
        raise UsageError(
            "this model's 4-bit layers have already run on a CPU, which permanently rounds their scales",
            "Load the model again, and attach adapters before its first forward pass.",
        )
    return QuantizedLinear(
        state.quant_type,
        shape,
        of_state(stored, state),
        layer.bias,
        dtype=dtype,
        transposed=transposed,
        blocks=blocks_of(state),
    )

"""Where a frozen base lies while it is used: whole on its device, or block by block from outside of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lrft.errors import CheckFailed
from lrft.model import streamed
from lrft.model.load import load_config, load_model
from lrft.model.quantized import is_quantized
from lrft.model.weights import weight_files
from lrft.utils import hardware
from lrft.utils.safetensors_stream import DTYPES, Entry, TensorReader

RESIDENT, STREAMED = "resident", "streamed"
# Share of the device's memory that whole weights may take: a step needs the rest.
MOST_OF_A_DEVICE = 0.7
# Bytes of a weight in the codes that it is quantised to, with their scales.
CODES = {"nf4": 0.52, "fp4": 0.52, "int8": 1.0, "fp8": 1.0}
# Dtypes of files that are read through their map and widened block by block.
NARROW = ({torch.bfloat16}, {torch.float16})


def exceeds(weights: int, memory: int | None) -> bool:
    """Whether whole weights leave a device too little for a step. In bytes; memory: None where nobody knows."""
    return memory is not None and weights > MOST_OF_A_DEVICE * memory


def memory_of(device: torch.device) -> int | None:
    """Bytes that weights on `device` could have: all of a GPU's, what is available to this process of the machine's."""
    return hardware.gpu_memory(device) if device.type == "cuda" else hardware.available()


def chosen(wanted: str, folder: Path, device: torch.device, *, dtype: torch.dtype, quantization: str = "none") -> str:
    """resident or streamed; for auto, streamed where the whole base leaves the device too little for a step.

    Raises as `weight_files`.
    """
    if wanted != "auto":
        return wanted
    return STREAMED if exceeds(size_in_memory(folder, dtype, quantization), memory_of(device)) else RESIDENT


def size_in_memory(folder: Path, dtype: torch.dtype, quantization: str = "none") -> int:
    """About how many bytes the weights in `folder` take once they are loaded. Only headers are read."""
    each, total = CODES.get(quantization, dtype.itemsize), 0.0
    for entry in _entries(folder):
        stored = DTYPES.get(entry.dtype)
        floating = stored is not None and stored.is_floating_point
        total += math.prod(entry.shape) * each if floating else entry.size
    return round(total)


def load_for(placement: str, folder: Path, *, dtype: torch.dtype, **options: Any) -> Any:
    """`load_model`, for `place`. What is to be streamed and can be widened exactly stays in the mapped files."""
    narrow = narrower(folder, dtype, **options) if placement == STREAMED else None
    if narrow is not None:
        model = load_model(folder, dtype=narrow, **options)
        # What a model's code has computed in the narrower dtype would not be what it computes in float32.
        if all(buffer.dtype != narrow for buffer in model.buffers()):
            model.config.dtype = dtype
            return model
    return load_model(folder, dtype=dtype, **options)


def place(model: Any, placement: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The loaded model, on `device` or streamed to it. Raises ValueError for a model that cannot be streamed."""
    if placement == RESIDENT:
        return model.to(device)
    whole = dtype == torch.float32 and not is_quantized(model)  # narrower ones keep some modules in float32
    streamed.stream(model, device, dtype if whole else None, small=streamed.SMALL)
    return model


def narrower(folder: Path, dtype: torch.dtype, *, quantization: str = "none", **options: Any) -> torch.dtype | None:
    """The dtype that all weights in the files have, where blocks can be widened from there to `dtype` exactly.

    None where they have several or a wider one, for codes, and for a model with a head, whose tensors are made anew.
    """
    config = load_config(folder, options.get("trust_remote_code", False))
    made = quantization != "none" or options.get("head") is not None or hasattr(config, "quantization_config")
    if dtype != torch.float32 or made:
        return None
    found = {DTYPES.get(entry.dtype) for entry in _entries(folder)}
    return next(iter(found)) if found in NARROW else None


def _entries(folder: Path) -> Iterator[Entry]:
    """The tensors of a folder. Files that are damaged have none: loading them says what is wrong."""
    for path in weight_files(folder):
        with suppress(CheckFailed), TensorReader(path) as reader:
            yield from reader.entries.values()

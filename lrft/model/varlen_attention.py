"""Attention over packed rows in one call of torch's kernel for rows of many lengths, on a GPU that has it.

Row by row (`packed_attention.by_rows`) is the definition. A GPU waits for the launch of so many small kernels; here a
layer is one. The kernel is asked once whether it gives the same on this device, for this dtype and head size: torch
may have it and the device not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from lrft.model.send import send

LARGEST_HEAD = 256
TRIED = (3, 9, 5)
"""tokens of the rows by which a kernel is tried"""
SAME = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""largest difference to the definition, of outputs about 1"""


def takes(query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the kernel does all that is asked of an attention layer. Shapes as in `packed_attention.attention`."""
    size = query.shape[-1]
    plain = kwargs.get("position_bias") is None and kwargs.get("cache") is None and kwargs.get("softcap") is None
    return (
        plain
        and not kwargs.get("dropout")
        and len(query) == 1
        and query.dtype == key.dtype == value.dtype
        and size == value.shape[-1] <= LARGEST_HEAD
        and size % 8 == 0
        and not torch.are_deterministic_algorithms_enabled()
        and works(query.device, query.dtype, size)
    )


@lru_cache(maxsize=16)
def works(device: torch.device, dtype: torch.dtype, size: int) -> bool:
    """Whether torch has the kernel, this device runs it, and it gives what the definition gives."""
    if device.type != "cuda" or dtype not in SAME or kernel() is None:
        return False
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            generator = torch.Generator(device).manual_seed(0)
            shape = (1, 2, sum(TRIED), size)
            q, k, v = (torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in "qkv")
            found = in_one_call(q, k, v, TRIED, starts(TRIED, device), causal=True)
            rows = zip(q.split(TRIED, dim=2), k.split(TRIED, dim=2), v.split(TRIED, dim=2), strict=True)
            alone = [scaled_dot_product_attention(*row, is_causal=True) for row in rows]
            expected = torch.cat(alone, dim=2)
            return bool((found - expected.transpose(1, 2)).abs().max() <= SAME[dtype])
    except (RuntimeError, ValueError):  # torch was built without it, or it is for other devices
        return False


def kernel() -> Any:
    """torch's varlen_attn; None where this torch has none, or one without grouped heads."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "enable_gqa" in (varlen_attn.__kwdefaults__ or {}) else None


def starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Where each row begins, and where the last one ends: int32 (rows + 1,)."""
    return send(torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32), device)


def in_one_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    begins: Tensor,
    *,
    causal: bool,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Query (1, heads, T, size), key and value (1, key heads, T, size) -> (1, T, heads, size).

    begins: see `starts`. window: each token sees itself and the window - 1 before it.
    """
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    back = -1 if window is None or window > max(lengths) else window - 1
    found: Tensor = kernel()(
        *(q, k, v, begins, begins, max(lengths), max(lengths)),
        scale=scale,
        window_size=(back, 0) if causal else (-1, -1),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return found[None]

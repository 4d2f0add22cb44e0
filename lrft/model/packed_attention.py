"""Attention over packed rows, through transformers' extension points.

transformers keeps packed rows apart with a mask of (tokens, tokens), which costs memory and makes the kernel compute
what it then throws away. Here the mask is the list of the rows' ends (`data.collate.ends_mask`: integers of four
dimensions, which transformers hands on as they are), and each row is one call of the causal kernel; all are one call
where the device has a kernel for that (`varlen_attention`). A row that goes on from the beginning of another
(`data.collate.branches_mask`) gets the other's queries and keys there. Any other mask goes to transformers' own SDPA,
so generation and padded batches are untouched.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model import varlen_attention
from lrft.model.attention_kernels import kernels_of

NAME = "rowwise_sdpa"
# Code that does something else under another name: sparse attention makes its choice of tokens a mask for SDPA only.
ASKS = re.compile(r"""_attn_implementation\s*(==|!=|in|not in)\s[^\n]*["']sdpa["']""")


def use_rowwise(model: Any) -> None:
    """Let a model that has chosen SDPA take it row by row where rows are laid end to end."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    if (
        model.config._attn_implementation == "sdpa"
        and model._can_set_attn_implementation()
        and not asks_for_sdpa(model)
    ):
        model.set_attn_implementation(kernels_of(model.config, {"sdpa": NAME}))


def asks_for_sdpa(model: nn.Module) -> bool:
    """Whether the model's own code compares the name of its attention with SDPA's."""
    files = {type(module).__module__ for module in model.modules()}
    return any(ASKS.search(source_of(name)) for name in files if not name.startswith("torch."))


@lru_cache(maxsize=64)
def source_of(module: str) -> str:
    try:
        return inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):  # made by code, or without a file
        return ""


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Query (B, heads, T, head size), key and value (B, key heads, ...) -> (B, T, heads, head size), None."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or not are_ends(attention_mask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    lengths, shared = row_lengths(attention_mask)
    if not any(shared) and varlen_attention.takes(query, key, value, kwargs):
        causal = kwargs.get("is_causal")
        return varlen_attention.in_one_call(
            *(query, key, value, lengths, row_starts(attention_mask, query.device)),
            causal=getattr(module, "is_causal", True) if causal is None else causal,
            window=kwargs.get("sliding_window"),
            scale=kwargs.get("scaling"),
        ), None
    return by_rows(module, query, key, value, lengths, shared, **kwargs), None


def by_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    shared: Sequence[int],
    **kwargs: Any,
) -> Tensor:
    """The first part of `attention`'s answer, from what `row_lengths` says."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    window = kwargs.get("sliding_window")
    outputs: list[Tensor] = []
    trunk: tuple[Tensor, ...] = (query, key, value)
    for length, before, row in zip(lengths, shared, rows_of((query, key, value), lengths), strict=True):
        if before:  # the causal kernel once more over what is shared: the rest of the layer is not
            row = tuple(torch.cat([first[:, :, :before], own], dim=2) for first, own in zip(trunk, row, strict=True))
        else:
            trunk = row
        whole = before + length
        mask = window_mask(whole, window, query.device) if window and whole > window else None
        q, k, v = row
        outputs.append(sdpa_attention_forward(module, q, k, v, mask, **kwargs)[0][:, before:])
    return torch.cat(outputs, dim=1)


def rows_of(tensors: Sequence[Tensor], lengths: Sequence[int]) -> Iterator[tuple[Tensor, ...]]:
    """The part of each of `tensors` (B, heads, T, head size) that is one row's."""
    return zip(*(tensor.split(list(lengths), dim=2) for tensor in tensors), strict=True)


def are_ends(mask: Tensor) -> bool:
    """Whether it says where packed rows end, rather than which tokens are seen."""
    return mask.ndim == 4 and not mask.is_floating_point() and mask.dtype != torch.bool


def row_lengths(mask: Tensor) -> tuple[list[int], list[int]]:
    """Tokens of each row, and those that it shares with one before it. Asked once per forward pass: the answer stays on
    the tensor, for reading a GPU's waits."""
    kept: tuple[list[int], list[int]] | None = getattr(mask, "row_lengths", None)
    if kept is None:
        ends, *shared = mask[0, 0].tolist()
        lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        kept = (lengths, *(shared or [[0] * len(ends)]))
        mask.row_lengths = kept  # type: ignore[attr-defined]
    return kept


def row_starts(mask: Tensor, device: torch.device) -> Tensor:
    """`varlen_attention.starts` of the rows of `mask`, made once per forward pass."""
    kept: Tensor | None = getattr(mask, "row_starts", None)
    if kept is None:
        kept = varlen_attention.starts(row_lengths(mask)[0], device)
        mask.row_starts = kept  # type: ignore[attr-defined]
    return kept


@lru_cache(maxsize=4)
def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """bool (1, 1, length, length): each token sees itself and the window - 1 before it."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return ((back >= 0) & (back < window))[None, None]

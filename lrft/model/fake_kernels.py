"""Attention and expert kernels for fake tensors: they save the same activations as the real kernels.

Where rows are given, attention is the real one of a CPU, row by row: PyTorch chooses its kernel by shapes, dropout and
mask, and one that is not fused keeps whole matrices. Else it is taken as fused.

Both go through transformers' own extension points, and the model has its kernels back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lrft.model.attention_kernels import kernels_of
from lrft.model.packed_attention import by_rows, window_mask

KERNEL = "planned_attention"
EXPERTS = "planned_experts"


@contextmanager
def imagined_kernels(model: Any, rows: Sequence[int] | None = None) -> Iterator[None]:
    """Inside, `model` (of transformers) runs on tensors without content, as far as it lets its kernels be chosen.

    rows: tokens of each, laid end to end, for the attention of a CPU; None for fused attention.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(KERNEL, fused if rows is None else partial(rowwise, rows))
    AttentionMaskInterface.register(KERNEL, lambda *arguments, **named: None)
    ExpertsInterface.register(EXPERTS, experts)
    kernels = kernels_of(model.config)
    chooses = kernels[""] != "eager" and model._can_set_attn_implementation()
    # A model that also sees may have its experts in a part that has them chosen, and say no itself.
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    chosen = [(part, part.get_experts_implementation()) for part in parts if part._can_set_experts_implementation()]
    try:
        if chooses:
            model.set_attn_implementation(KERNEL)
        for part, _ in chosen:
            part.set_experts_implementation(EXPERTS)
        yield
    finally:
        if chooses:
            model.set_attn_implementation(kernels)
        window_mask.cache_clear()  # else a run of this process would find masks without content
        for part, names in chosen:
            part.set_experts_implementation(names)


def rowwise(
    rows: Sequence[int], module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """`lrft.model.packed_attention.attention` over rows of so many tokens."""
    return by_rows(module, q, k, v, rows, [0] * len(rows), **kwargs), None


def fused(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, None]:
    """q (B, heads, T, size), k, v (B, key heads, T, ...) -> (B, T, heads, size of v), None."""
    return _Kept.apply(q, k, v), None


class _Kept(torch.autograd.Function):
    """Queries, keys, values, outputs and a number for each query are kept, as the fused kernels keep them."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, tokens, _ = q.shape
        out = q.new_empty(batch, tokens, heads, v.shape[-1])
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        raise NotImplementedError("planning runs the forward pass only")


def experts(layer: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """hidden (tokens, width), top_k_index and top_k_weights (tokens, k) -> (tokens, width).

    The products of every pair of a token and an expert, with the weight of the first expert: which experts are chosen
    changes no shape.
    """
    tokens, k = top_k_index.shape
    first = top_k_index.new_zeros(tokens * k)
    inner = _product(layer, hidden[first], "gate_up_proj" if layer.has_gate else "up_proj", first)
    inner = layer._apply_gate(inner) if layer.has_gate else layer.act_fn(inner)
    out = _product(layer, inner, "down_proj", first)
    if layer.has_post_expert_norm:
        out = layer.post_expert_norm(out)
    weighted = (out * top_k_weights.reshape(-1, 1))[first]
    return weighted.view(tokens, k, -1).sum(dim=1).to(hidden.dtype)


def _product(layer: Any, x: Tensor, name: str, first: Tensor) -> Tensor:
    weight = getattr(layer, name)[0]
    y = x.to(weight.dtype) @ (weight if layer.is_transposed else weight.T)
    return y + getattr(layer, f"{name}_bias")[first] if layer.has_bias else y

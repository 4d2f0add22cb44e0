"""Layers of stacked experts in one product for all of them: `torch.nn.functional.grouped_mm` over sorted rows.

Expert by expert is the definition, and what is computed wherever a layer is more than a frozen product and a pair B A,
or torch has no grouped product for the device and dtype. Shapes: x (rows, k), the rows of each expert together;
W (experts, d, k), A (r, k) and B (d, r) of one expert.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import dropout, pad

from lrft.model import output_cache

ALIGNED = 16
"""bytes at whose multiples the kernels want each row of a matrix to begin"""


class Pair(NamedTuple):
    """s B A dropped, beside a frozen product."""

    B: Tensor
    A: Tensor
    scale: float
    dropout: float
    """probability, 0 outside of training"""


@runtime_checkable
class InPairs(Protocol):
    """A layer that says what it adds to its frozen product for x: the pairs, or None where that is something else."""

    def pairs(self, x: Tensor) -> Sequence[Pair] | None: ...


def pairs_of(layers: Iterable[nn.Module], x: Tensor) -> list[Pair] | None:
    """The pair of each layer, [] where none has one; None where they cannot be computed together."""
    found: list[Sequence[Pair]] = []
    for layer in layers:
        own = layer.pairs(x) if isinstance(layer, InPairs) and not has_hooks(layer) else None
        if own is None or len(own) > 1:
            return None
        found.append(own)
    pairs = [pair for own in found for pair in own]
    alike = {(pair.A.shape, pair.B.shape, pair.A.dtype, pair.scale, pair.dropout) for pair in pairs}
    return pairs if len(pairs) in (0, len(found)) and len(alike) <= 1 else None


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody wants to see what this layer gets, gives, or is given back."""
    return any((module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks))


def is_possible(x: Tensor, W: Tensor) -> bool:
    """Whether `linear_plus_pairs` can compute for these. W: the stack as it is stored."""
    if x.is_meta or isinstance(x, FakeTensor) or torch.compiler.is_compiling():
        return False
    dtype = dtype_of(x)
    if not torch.is_autocast_enabled(x.device.type) and W.dtype != dtype:
        return False
    rows_begin_well = all(size * dtype.itemsize % ALIGNED == 0 for size in W.shape[1:])
    return rows_begin_well and W.is_contiguous() and W.data_ptr() % ALIGNED == 0 and has_product(x.device, dtype)


def dtype_of(x: Tensor) -> torch.dtype:
    """The dtype in which a product of x is computed."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


@cache
def has_product(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has grouped products here, those of the forward and of the backward pass. It is asked for small
    ones: which devices, dtypes and versions have them is said nowhere else."""
    grouped = getattr(torch.nn.functional, "grouped_mm", None)
    if grouped is None:
        return False
    x, W = (torch.ones(shape, device=device, dtype=dtype) for shape in ((8, 16), (2, 16, 16)))
    ends = torch.tensor([8, 8], dtype=torch.int32, device=device)
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            y = grouped(x, W.transpose(1, 2), offs=ends)
            slope = grouped(y.T, x, offs=ends)[0]
    except RuntimeError:
        return False
    return bool((y == 16).all() and (slope == 8 * 16).all())


def linear_plus_pairs(
    x: Tensor, W: Tensor, biases: Tensor | None, counts: Sequence[int], pairs: Sequence[Pair], everyone: bool
) -> Tensor:
    """(rows, d): W x + bias + s B A dropped of the expert that a row belongs to.

    W: (experts, d, k), frozen; biases: (experts, d). counts: rows of each expert. pairs: of each expert, or none.
    everyone: also the pairs of experts without rows get gradients, of zero. Differentiable by x and the pairs.
    """
    dtype = dtype_of(x)
    x, W = x.to(dtype), W.to(dtype)
    if not pairs:
        with torch.autocast(x.device.type, enabled=False):
            return product(x, W, biases, counts)
    s, p = pairs[0].scale, pairs[0].dropout
    taking = [e for e, rows in enumerate(counts) if rows or everyone]
    factors = [pairs[e].B for e in taking] + [pairs[e].A for e in taking]
    own = tuple(counts[e] for e in taking)
    return _LinearPlusPairs.apply(x, dropout(x, p) if p else None, W, biases, tuple(counts), own, s, *factors)


def product(x: Tensor, W: Tensor, biases: Tensor | None, counts: Sequence[int]) -> Tensor:
    """W x + bias."""
    y = grouped_mm(x, W.transpose(1, 2), counts)
    if biases is None:
        return y
    each = torch.repeat_interleave(torch.tensor(counts, device=x.device), output_size=len(x))
    return y + biases.to(y.dtype)[each]


def grouped_mm(a: Tensor, b: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of a (rows, n) by matrices of b (groups, n, m), or columns of a (m, rows) by rows of b (rows, n)."""
    ends = torch.tensor(list(accumulate(counts)), dtype=torch.int32, device=a.device)
    found: Tensor = torch.nn.functional.grouped_mm(a, b, offs=ends)
    return found


def stacked(factors: Sequence[Tensor], dtype: torch.dtype, *, last: bool) -> Tensor:
    """The factors in one tensor. The rank, their last size or that before, is filled up with zeros until rows begin
    where kernels want them."""
    rank = factors[0].shape[-1 if last else -2]
    more = -rank % (ALIGNED // dtype.itemsize)
    found = torch.stack(list(factors)).to(dtype)
    return pad(found, (0, more) if last else (0, 0, 0, more)) if more else found


class _LinearPlusPairs(torch.autograd.Function):
    """Keeps the input and what it was given: stacks of the factors are made again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        W: Tensor,
        biases: Tensor | None,
        counts: tuple[int, ...],
        own: tuple[int, ...],
        s: float,
        *factors: Tensor,
    ) -> Tensor:
        y, kept = output_cache.played(), x if dropped is None else dropped
        trains_A = any(ctx.needs_input_grad[7 + len(own) :])
        with torch.autocast(x.device.type, enabled=False):
            if y is None or not trains_A:
                A = stacked(factors[len(own) :], x.dtype, last=False)
                thin = grouped_mm(kept, A.transpose(1, 2), own)
            if y is None:
                y = product(x, W, biases, counts)
                B = stacked(factors[: len(own)], x.dtype, last=True)
                y.add_(grouped_mm(thin, B.transpose(1, 2), own), alpha=s)
        output_cache.record(x, y)
        ctx.save_for_backward(kept if trains_A else thin, W, *factors)
        ctx.counts, ctx.own, ctx.s, ctx.own_path = counts, own, s, dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        kept, W, *factors = ctx.saved_tensors
        own, needs = ctx.own, ctx.needs_input_grad
        for_B, for_A = any(needs[7 : 7 + len(own)]), any(needs[7 + len(own) :])
        Bs, As = factors[: len(own)], factors[len(own) :]
        g = slope.contiguous()
        A = stacked(As, g.dtype, last=False)
        thin = grouped_mm(g, stacked(Bs, g.dtype, last=True), own).mul_(ctx.s)
        of_x = of_dropped = None
        of_B: list[Tensor | None] = [None] * len(own)
        of_A: list[Tensor | None] = [None] * len(own)
        if for_B:
            inner = grouped_mm(kept, A.transpose(1, 2), own) if for_A else kept
            of_B = gradients(grouped_mm(g.T, inner, own).mul_(ctx.s), Bs, own)
        if for_A:
            of_A = gradients(grouped_mm(thin.T, kept, own), As, own)
        if needs[0]:
            of_x = grouped_mm(g, W, ctx.counts)
            if not ctx.own_path:
                of_x += grouped_mm(thin, A, own)
        if needs[1]:
            of_dropped = grouped_mm(thin, A, own)
        return of_x, of_dropped, None, None, None, None, None, *of_B, *of_A


def gradients(found: Tensor, of: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor | None]:
    """The gradient of each factor from the product of all, without the zeros that the rank was filled up with. What a
    kernel leaves for a group without rows is not said to be zero."""
    return [
        each[: like.shape[0], : like.shape[1]].to(like.dtype) if rows else torch.zeros_like(like)
        for each, like, rows in zip(found, of, counts, strict=True)
    ]

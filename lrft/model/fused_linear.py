"""Adapted linear layers as single autograd functions that save only their input.

The definition beside each function is its slow twin. Autograd left to itself would keep the thin product, the update
and copies of them, and read and write the output once more for every addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.model import output_cache
from lrft.model.experts import ExpertLinear
from lrft.model.linear import as_rows, is_transposed


def is_plain(base: Any) -> bool:
    """Whether the layer is a frozen product and a bias, whose gradient is known here. (A quantised one is not.)"""
    plain = type(base) in (nn.Linear, ExpertLinear) or is_transposed(base)
    return bool(plain and not any(p.requires_grad for p in base.parameters()) and base.weight.is_floating_point())


def is_wide(x: Tensor) -> bool:
    """Whether a sum of weights is computed for x in float32 or float64: in few bits it would lose what is small."""
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def parts_of(base: Any) -> tuple[Tensor, Tensor | None]:
    """(W (d, k), bias (d,) or None) of a plain layer."""
    return as_rows(base.weight, is_transposed(base)), base.bias


def linear_plus_pair(
    x: Tensor, dropped: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, A: Tensor, s: float
) -> Tensor:
    """W x + bias + s B A dropped for x, dropped (..., k); dropped is x itself where nothing is dropped.

    Differentiable by x, dropped, B and A. Computed in the dtype of autocast where it is on, else in x's.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        same = dropped is x
        x = x.to(dtype)
        dropped = x if same else dropped.to(dtype)
        W, B, A = W.to(dtype), B.to(dtype), A.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return _LinearPlusPair.apply(x, None if dropped is x else dropped, W, bias, B, A, s)


class _LinearPlusPair(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, W: Tensor, bias: Tensor | None, B: Tensor, A: Tensor, s: float
    ) -> Tensor:
        seen = (x if dropped is None else dropped).flatten(0, -2)
        trains_A = ctx.needs_input_grad[5]
        y, kept = output_cache.played(), seen
        with torch.autocast(x.device.type, enabled=False):
            if y is None:
                y = linear(x, W, bias)
                y.view(-1, len(W)).addmm_(seen @ A.T, B.T, alpha=s)
            if not trains_A:  # the thin product, cheap to make again, is then all that is needed: x is not kept
                kept = seen @ A.T
        output_cache.record(x, y)
        ctx.save_for_backward(kept, W, B, A)
        ctx.s, ctx.shape, ctx.own_path = s, x.shape, dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        kept, W, B, A = ctx.saved_tensors
        for_x, for_dropped, _, _, for_B, for_A, _ = ctx.needs_input_grad
        g = slope.flatten(0, -2)
        thin = (g @ B).mul_(ctx.s)
        of_x = of_dropped = of_B = of_A = None
        if for_B:
            of_B = (g.T @ (kept @ A.T if for_A else kept)).mul_(ctx.s)
        if for_A:
            of_A = thin.T @ kept
        if for_x:
            of_x = g @ W
            if not ctx.own_path:
                of_x.addmm_(thin, A)
            of_x = of_x.view(ctx.shape)
        if for_dropped:
            of_dropped = (thin @ A).view(ctx.shape)
        return of_x, of_dropped, None, None, of_B, of_A, None


def linear_alone(x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
    """W x + bias for x (..., k), frozen: the twin of a plain layer that can be played back."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, W, bias = x.to(dtype), W.to(dtype), None if bias is None else bias.to(dtype)
    return _LinearAlone.apply(x, W, bias)


class _LinearAlone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        y = output_cache.played()
        if y is None:
            y = linear(x, W, bias)
        output_cache.record(x, y)
        ctx.save_for_backward(W)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        (W,) = ctx.saved_tensors
        return slope @ W, None, None


def linear_plus(
    x: Tensor, W: Tensor, bias: Tensor | None, update: Callable[[Tensor], Tensor], trained: Sequence[Tensor]
) -> Tensor:
    """W x + bias + update(x) for x (..., k), where `update` is made again for the backward pass from x alone.

    update: a deterministic function of x and of the tensors `trained`, differentiable by both.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, W, bias = x.to(dtype), W.to(dtype), None if bias is None else bias.to(dtype)
    return _LinearPlus.apply(x, W, bias, update, *trained)


class _LinearPlus(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, update: Callable[[Tensor], Tensor], *trained: Tensor
    ) -> Tensor:
        y = output_cache.played()
        if y is None:
            y = linear(x, W, bias)
            y += update(x)
        output_cache.record(x, y)
        ctx.save_for_backward(x, W, *trained)
        ctx.update, ctx.autocast = update, torch.is_autocast_enabled(x.device.type)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, W, *trained = ctx.saved_tensors
        # The backward pass runs outside of autocast, and must make what the forward pass made.
        with torch.enable_grad(), torch.autocast(x.device.type, dtype=slope.dtype, enabled=ctx.autocast):
            own = x.detach().requires_grad_(ctx.needs_input_grad[0])
            again = ctx.update(own)
        wanted = [t for t in (own, *trained) if t.requires_grad]
        found = list(torch.autograd.grad(again, wanted, slope.to(again.dtype), allow_unused=True))
        of_x = None
        if own.requires_grad:
            through = found.pop(0)
            of_x = slope @ W
            if through is not None:
                of_x += through
        of_trained = [found.pop(0) if t.requires_grad else None for t in trained]
        return of_x, None, None, None, *of_trained


def linear_plus_made(
    x: Tensor, W: Tensor, bias: Tensor | None, make: Callable[[], Tensor], trained: Sequence[Tensor]
) -> Tensor:
    """(W + D) x + bias for x (..., k), W frozen, D = make() (d, k), which is made again for the backward pass.

    One product more than W x takes in a step, that of D's gradient: cheaper than D x beside W x, which takes four.
    make: a deterministic function of the tensors `trained`, differentiable by them. Not for autocast: in few bits W + D
    is W where D is small.
    """
    return _LinearPlusMade.apply(x, W, bias, make, *trained)


class _LinearPlusMade(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, make: Callable[[], Tensor], *trained: Tensor
    ) -> Tensor:
        y = output_cache.played()
        if y is None:
            y = linear(x, W + make(), bias)
        output_cache.record(x, y)
        ctx.save_for_backward(x, W, *trained)
        ctx.make = make
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, W, *trained = ctx.saved_tensors
        with torch.enable_grad():
            D = ctx.make()
        of_x = slope @ (W + D.detach()) if ctx.needs_input_grad[0] else None
        wanted = [t for t in trained if t.requires_grad]
        found = list(torch.autograd.grad(D, wanted, slope.flatten(0, -2).T @ x.flatten(0, -2), allow_unused=True))
        return of_x, None, None, None, *(found.pop(0) if t.requires_grad else None for t in trained)


def linear_sum(x: Tensor, W: Tensor, bias: Tensor | None, D: Tensor) -> Tensor:
    """(W + D) x + bias for x (..., k), W frozen. The sum is made for each pass and not kept."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    return _LinearSum.apply(x, W, bias, D)


class _LinearSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, D: Tensor) -> Tensor:
        y = output_cache.played()
        if y is None:
            with torch.autocast(x.device.type, enabled=False):
                y = linear(x, (W + D).to(x.dtype), bias)
        output_cache.record(x, y)
        ctx.save_for_backward(x, W, D)
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        x, W, D = ctx.saved_tensors
        of_x = of_D = None
        if ctx.needs_input_grad[0]:
            of_x = slope @ (W + D).to(slope.dtype)
        if ctx.needs_input_grad[3]:
            of_D = (slope.flatten(0, -2).T @ x.flatten(0, -2)).to(D.dtype)
        return of_x, None, None, of_D

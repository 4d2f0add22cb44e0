"""Adapted linear layers as single autograd functions that save only their input, and a product that is thin.

The definition beside each function is its slow twin. Autograd left to itself would keep the update and copies of it,
and read and write the output once more for every addition. The factor s is the alpha of a matrix product, never a
multiplication of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.model import output_cache
from lrft.model.experts import ExpertLinear
from lrft.model.linear import as_rows, is_transposed

# Below this width a product of two matrices is thin, whatever the layer.
THICK = 64
# A product x A^T of a width that fits so many times into x's is kept: making it again reads all of x.
THIN = 8


def is_plain(base: Any) -> bool:
    """Whether the layer is a frozen product and a bias, whose gradient is known here. (A quantised one is not.)"""
    plain = type(base) in (nn.Linear, ExpertLinear) or is_transposed(base)
    return bool(plain and not any(p.requires_grad for p in base.parameters()) and base.weight.is_floating_point())


def is_wide(x: Tensor) -> bool:
    """Whether a sum of weights is computed for x in float32 or float64: in few bits it would lose what is small."""
    return x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(x.device.type)


def sum_pays_from(width: int, d: int, k: int) -> float:
    """From how many vectors at once (W + P Q) x is cheaper in a step than W x + P Q x, for P (d, width), Q (width, k).

    By multiplications: each vector and the gradients pass about four times through P and Q; their product is made four
    times, and then costs one product for each vector, that of its gradient.
    """
    saved = 4 * width * (d + k) - d * k
    return 4 * width * d * k / saved if saved > 0 else math.inf


def sum_pays(x: Tensor, width: int, d: int, k: int) -> bool:
    """Whether it is cheaper for x and loses nothing."""
    return width >= THICK and is_wide(x) and x.numel() // k >= sum_pays_from(width, d, k)


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
        seen = x if dropped is None else dropped
        trains_A = ctx.needs_input_grad[5]
        y = output_cache.played()
        keeps_thin = not trains_A or len(A) * THIN <= A.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            thin: Any = seen.flatten(0, -2) @ A.T if y is None or keeps_thin else None
            if y is None:
                y = linear(x, W, bias)
                y.view(-1, len(W)).addmm_(thin, B.T, alpha=s)
        output_cache.record(x, y)
        # Where A is not trained the thin product is all that is needed: x is not kept.
        ctx.save_for_backward(seen if trains_A else None, thin if keeps_thin else None, W, B, A)
        ctx.s, ctx.shape, ctx.own_path = s, x.shape, dropped is not None
        return y

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        seen, thin, W, B, A = ctx.saved_tensors
        for_x, for_dropped, _, _, for_B, for_A, _ = ctx.needs_input_grad
        seen = None if seen is None else seen.flatten(0, -2)
        if seen is not None and (thin is None or torch.is_grad_enabled()):  # a gradient's gradient leads through it
            thin = seen @ A.T
        g = slope.flatten(0, -2)
        of_thin = times(g, B, ctx.s)
        of_x = of_dropped = of_B = of_A = None
        if for_B:
            of_B = times(g.T, thin, ctx.s)
        if for_A:
            of_A = of_thin.T @ seen
        if for_x:
            of_x = g @ W
            if not ctx.own_path:
                of_x.addmm_(of_thin, A)
            of_x = of_x.view(ctx.shape)
        if for_dropped:
            of_dropped = (of_thin @ A).view(ctx.shape)
        return of_x, of_dropped, None, None, of_B, of_A, None


def times(a: Tensor, b: Tensor, s: float) -> Tensor:
    """s a b of two matrices, in one product."""
    return torch.addmm(a.new_empty(()), a, b, beta=0, alpha=s)


def thin_products(x: Tensor, factors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """x, passed on, and A x of each of the `factors` A (r, k), for x (..., k): in one product.

    The first layer over x takes the x that is passed on, and the next one what `linear_plus_thin` passes on. So each of
    them, and this, adds what it has to the gradient of x in the product that makes it: no sums are left to be made.
    """
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    passed, *thin = _ThinProducts.apply(x, *factors)
    return passed, thin


class _ThinProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        for_x, *for_factors = ctx.needs_input_grad
        A = torch.cat(factors).to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            thin = x.flatten(0, -2) @ A.T
        ctx.save_for_backward(x if any(for_factors) else None, A, *factors)
        ctx.shape = x.shape
        passed = x.view_as(x)
        ctx.mark_non_differentiable(*([] if for_x else [passed]))
        ctx.set_materialize_grads(False)
        return passed, *thin.split([len(factor) for factor in factors], dim=-1)

    @staticmethod
    def backward(ctx: Any, of_x: Tensor | None, *of_thin: Tensor | None) -> Any:
        x, A, *factors = ctx.saved_tensors
        for_x, *for_factors = ctx.needs_input_grad
        # A layer that was not called, or leads nowhere, has no gradient; that is not the same as zero.
        reached = [n for n, of in enumerate(of_thin) if of is not None]
        of_factors: list[Tensor | None] = [None] * len(factors)
        if not reached:
            return of_x, *of_factors
        if torch.is_grad_enabled() or len(reached) < len(factors):
            A = torch.cat([factors[n] for n in reached]).to(A.dtype)
        joined = torch.cat([of for of in of_thin if of is not None], dim=-1)
        if any(for_factors):
            of_A = (joined.T @ x.flatten(0, -2)).to(factors[0].dtype).split([len(factors[n]) for n in reached])
            for n, part in zip(reached, of_A, strict=True):
                of_factors[n] = part if for_factors[n] else None
        return added(of_x, joined, A, ctx.shape) if for_x else None, *of_factors


def linear_plus_thin(
    x: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, thin: Tensor, s: float
) -> tuple[Tensor, Tensor]:
    """W x + bias + s B thin for x (..., k) and thin (n, r), and x as it is passed on, both of `thin_products`."""
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        W, B, bias = W.to(dtype), B.to(dtype), None if bias is None else bias.to(dtype)
    y, passed = _LinearPlusThin.apply(x, W, bias, B, thin, s)
    return y, passed


class _LinearPlusThin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, B: Tensor, thin: Tensor, s: float
    ) -> tuple[Tensor, Tensor]:
        y = output_cache.played()
        if y is None:
            with torch.autocast(x.device.type, enabled=False):
                y = linear(x, W, bias)
                y.view(-1, len(W)).addmm_(thin, B.T, alpha=s)
        output_cache.record(x, y)
        ctx.save_for_backward(W, B, thin)
        ctx.s, ctx.shape = s, x.shape
        passed = x.view_as(x)
        ctx.mark_non_differentiable(*([] if ctx.needs_input_grad[0] else [passed]))
        ctx.set_materialize_grads(False)
        return y, passed

    @staticmethod
    def backward(ctx: Any, slope: Tensor | None, of_x: Tensor | None) -> Any:
        W, B, thin = ctx.saved_tensors
        for_x, _, _, for_B, for_thin, _ = ctx.needs_input_grad
        of_B = of_thin = None
        if slope is not None:
            g = slope.flatten(0, -2)
            if for_thin:
                of_thin = times(g, B, ctx.s)
            if for_B:
                of_B = times(g.T, thin, ctx.s)
            if for_x:
                of_x = added(of_x, g, W, ctx.shape)
        return of_x, None, None, of_B, of_thin, None


def added(total: Tensor | None, a: Tensor, b: Tensor, shape: torch.Size) -> Tensor:
    """total + a b, into the memory of `total`, which nobody else has; a b where there is none."""
    if total is None:
        return (a @ b).view(shape)
    total.view(-1, b.shape[1]).addmm_(a, b)
    return total


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
    if torch.compiler.is_compiling():  # a compiler chooses itself what is made again, and cannot trace who asks for it
        y = linear(x, W, bias)
        return y + update(x).to(y.dtype)
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

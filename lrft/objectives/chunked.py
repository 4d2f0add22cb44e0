"""Sums over tokens of any formula on their logits, some tokens at a time: (tokens, vocabulary) is never whole.

The cross-entropy alone has a faster form of its own, whose slope is written out (`lrft.objectives.cross_entropy`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrft.objectives.cross_entropy import scaled, wide

# (logits (m, vocabulary) in at least float32, index of the first of these m tokens) -> (k,) sums over them.
Formula = Callable[[Tensor, int], Tensor]


def chunked_sums(head: nn.Module, hidden: Tensor, formula: Formula, *, sums: int, rows: int) -> tuple[Tensor, Tensor]:
    """The sums of `formula(head(hidden))` over all n tokens: the first, with its gradient; and all (k,), without.

    hidden  (n, width)
    sums    k, how many the formula makes
    rows    tokens at once

    Where a gradient is wanted, each part's is made at once with its logits: they are never made again.
    """
    if not torch.is_grad_enabled():
        total = hidden.new_zeros(sums, dtype=torch.promote_types(hidden.dtype, torch.float32))
        for at in range(0, len(hidden), rows):
            total += formula(wide(head(hidden[at : at + rows])), at)
        return total[0], total
    trained = [p for p in head.parameters() if p.requires_grad]
    loss, total = _Chunked.apply(head, hidden, formula, sums, rows, *trained)
    return loss, total


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: nn.Module, hidden: Tensor, formula: Formula, sums: int, rows: int, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = hidden.new_zeros(sums, dtype=torch.promote_types(hidden.dtype, torch.float32))
        gradient = torch.empty_like(hidden)
        gradients = [torch.zeros_like(p) for p in trained]
        for at in range(0, len(hidden), rows):
            part = hidden[at : at + rows].detach().requires_grad_()
            with torch.enable_grad():
                found = formula(wide(head(part)), at)
                of_part, *of_trained = torch.autograd.grad(found[0], [part, *trained])
            total += found.detach()
            gradient[at : at + rows] = of_part
            for own, more in zip(gradients, of_trained, strict=True):
                own += more
        ctx.save_for_backward(gradient, *gradients)
        ctx.mark_non_differentiable(total)
        return total[0].clone(), total

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> Any:
        gradient, *gradients = ctx.saved_tensors
        return None, scaled(gradient, slope), None, None, None, *(scaled(g, slope) for g in gradients)

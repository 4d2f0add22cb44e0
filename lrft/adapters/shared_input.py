"""Layers that read the same tensor: their thin products in one, and its gradient without sums.

Queries, keys and values, or gate and up, read one tensor x. With factors A_q, A_k, A_v the first that is called makes
x [A_q; A_k; A_v]^T, and the others find their part. The tensors of the adapters stay what they are, and each layer
computes its own output when it is called.

What is held between the calls of a group is held while the module around them computes, and no longer: hooks on that
module open and close it, also when it ends in an exception. A parameter is written to, and a block is computed again,
outside of that. A layer that is called in between with another tensor, or a second time, is on its own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lrft.adapters.adapter import Adapter, Delta
from lrft.adapters.attached import Attached
from lrft.model import fused_linear


class Turn(NamedTuple):
    """What the first of a group has made for one of it."""

    thin: Tensor
    """A x (n, r)"""
    B: Tensor
    scale: float


class SharedInput:
    """The updates of the layers that read one tensor."""

    def __init__(self, readers: Sequence[Delta]) -> None:
        self.readers = readers
        self.is_open = False
        self.x: Tensor | None = None
        """the tensor that is being read"""
        self.passed: Tensor | None = None
        """the same, for the next that reads it"""
        self.turns: dict[int, Turn] = {}
        """of those that have not been called with it"""

    def __deepcopy__(self, memo: Any) -> SharedInput:
        return self  # a copy of a reader is none of the readers

    def open(self, *_: Any) -> None:
        self.close()
        self.is_open = True

    def close(self, *_: Any) -> None:
        self.is_open = False
        self.x = self.passed = None
        self.turns = {}

    def product(self, reader: Delta, x: Tensor, W: Tensor, bias: Tensor | None) -> Tensor | None:
        """W x + bias + dW x; None where the reader is on its own."""
        if not self.is_open:
            return None
        if self.x is not x:
            self.start(x)
        turn = self.turns.pop(id(reader), None)
        if turn is None or self.passed is None:
            return None
        y, self.passed = fused_linear.linear_plus_thin(self.passed, W, bias, turn.B, turn.thin, turn.scale)
        return y

    def start(self, x: Tensor) -> None:
        self.x, self.passed, self.turns = x, None, {}
        # One with dropout reads a tensor of its own.
        found = [(reader, reader.factors()) for reader in self.readers if not (reader.dropout and reader.training)]
        pairs = [(reader, factors) for reader, factors in found if factors is not None]
        if len(pairs) > 1:
            self.passed, thin = fused_linear.thin_products(x, [factors.A for _, factors in pairs])
            self.turns = {
                id(reader): Turn(part, factors.B, factors.scale)
                for (reader, factors), part in zip(pairs, thin, strict=True)
            }


def share_inputs(attached: Attached, together: Iterable[Sequence[str]]) -> list[SharedInput]:
    """Let adapters share products of what they read. together: names of layers that read one tensor, group by group
    (`lrft.adapters.reach.Reach.together`)."""
    made = []
    for names in together:
        readers = [r for name in names if name in attached.modules and (r := reader_of(attached.modules[name]))]
        # One with a forward pass of its own may make there what its factors need: the first of a group comes before.
        readers = [reader for reader in readers if type(reader).forward is Delta.forward]
        around = os.path.commonpath([name.replace(".", "/") for name in names]).replace("/", ".")
        if len(readers) > 1 and around:
            group = SharedInput(readers)
            module = attached.model.get_submodule(around)
            module.register_forward_pre_hook(group.open)
            module.register_forward_hook(group.close, always_call=True)
            for reader in readers:
                reader.siblings = group
            made.append(group)
    return made


def reader_of(adapter: Adapter) -> Delta | None:
    """The update that adds to the weight: the adapter itself, or what a wrapper has inside."""
    return next((module for module in adapter.modules() if isinstance(module, Delta)), None)

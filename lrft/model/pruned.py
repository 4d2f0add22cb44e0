"""A linear layer that trains with a part of its weight and answers with all of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lrft.model.quantized import QuantizedPart, quantized


class PrunedLinear(nn.Module):
    """In training, some rows and columns of a layer: the outputs of the others are zero, the inputs not looked at.

    In evaluation it is the whole layer, whose weight waits in the host's memory and comes over for each product. Only
    `weight` (kept rows, kept columns) and `bias` are parameters, which move with the model; of a quantised part its
    codes are, and `weight` is made of them.
    """

    def __init__(
        self, whole: nn.Linear, rows: Tensor | None = None, columns: Tensor | None = None, *, quantize: str = "none"
    ) -> None:
        """rows, columns: indices that are kept, in order; None: all. quantize: what is kept, to a kind of `KINDS`."""
        super().__init__()
        weight = whole.weight.detach()
        bias: Tensor | None = whole.bias
        if rows is not None:
            weight = weight.index_select(0, rows)
            bias = None if bias is None else bias.detach().index_select(0, rows)
        if columns is not None:
            weight = weight.index_select(1, columns)
        self.part: QuantizedPart | None = None if quantize == "none" else quantized(weight, quantize)
        if self.part is None:
            self.kept = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.bias: nn.Parameter | None = (
            None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        )
        self.rows: Tensor | None
        self.columns: Tensor | None
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.held = (whole,)  # in a tuple: not a part of this module, so that it stays where it is
        self.train(whole.training)

    @property
    def weight(self) -> Tensor:
        """(kept rows, kept columns), which the layer trains with."""
        return self.kept if self.part is None else self.part.weight

    @property
    def dtype(self) -> torch.dtype:
        return self.kept.dtype if self.part is None else self.part.like.dtype

    @property
    def device(self) -> torch.device:
        return self.kept.device if self.part is None else self.part.codes.device

    @property
    def whole(self) -> nn.Linear:
        """The layer that this is a part of."""
        return self.held[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(d, k) of the whole layer, as its inputs and outputs have it."""
        return self.whole.out_features, self.whole.in_features

    def forward(self, x: Tensor) -> Tensor:
        y = self.product(x)
        if self.bias is None:
            return y
        bias = self.spread(self.bias) if self.training else self.whole.bias
        return y + bias.to(y.device, y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """W x for x (..., k), without the bias."""
        if not self.training:
            return linear(x, self.whole.weight.to(self.device, self.dtype))
        seen = x if self.columns is None else x.index_select(-1, self.columns)
        return self.spread(linear(seen, self.kept) if self.part is None else self.part.product(seen))

    def spread(self, y: Tensor) -> Tensor:
        """(..., kept rows) at their places in zeros (..., d)."""
        if self.rows is None:
            return y
        return y.new_zeros(*y.shape[:-1], self.shape[0]).index_copy(-1, self.rows, y)


def whole_again(model: Any) -> None:
    """Put the whole layers back in the place of their parts, on the device of these."""
    for name, module in list(model.named_modules()):
        if isinstance(module, PrunedLinear):
            parent, _, word = name.rpartition(".")
            setattr(model.get_submodule(parent), word, module.whole.to(module.device))


def dense(layer: PrunedLinear) -> Tensor:
    """The whole weight (d, k), in at least float32, where the layer's own part lies."""
    weight = layer.whole.weight.detach().to(layer.device)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))

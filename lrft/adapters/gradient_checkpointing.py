"""Selective gradient checkpointing: outputs of linear layers are kept, all else is recomputed.

A block of the model is computed again in the backward pass, so that nothing of it is kept but its input. Most of that
work is in its linear layers, most of the memory in what lies between them: so the outputs of the linear layers are
kept, and in the second pass they are played back. What is then computed again are norms, activations, rotations,
sums and attention.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor, nn

from lrft.adapters.adapter import AdapterLinear
from lrft.adapters.targets import depth_of
from lrft.model import fused_linear, output_cache
from lrft.model.linear import named_linears

# The largest output, as a multiple of the input, that is kept. medium leaves out the wide layers of the feed-forward
# part: most bytes for each product saved.
KEPT = {"light": math.inf, "medium": 1.5}


def checkpoint(model: Any, kind: str) -> None:
    """Compute the blocks of a transformers model again in the backward pass: light, medium or full."""
    # The re-entrant kind of checkpointing loses the gradients of adapters above a frozen embedding. transformers hands
    # `context_fn` on to torch.utils.checkpoint, which asks it for two contexts: for the first pass and for the second.
    options: dict[str, Any] = {"use_reentrant": False}
    if kind in KEPT:
        options["context_fn"] = partial(output_cache.contexts, KEPT[kind])
        record_the_others(model)
    model.activation_checkpointing_enable(options)


def record_the_others(model: nn.Module) -> None:
    """Let the blocks' linear layers without an adapter be recorded as well."""
    bases = {id(module.base) for module in model.modules() if isinstance(module, AdapterLinear)}
    for name, module in list(named_linears(model)):
        if depth_of(name) is not None and id(module) not in bases and fused_linear.is_plain(module):
            parent, _, word = name.rpartition(".")
            setattr(model.get_submodule(parent), word, RecordedLinear(module))


class RecordedLinear(nn.Module):
    """A frozen linear layer whose output can be played back."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return fused_linear.linear_alone(x, *fused_linear.parts_of(self.base))

    # Models ask their linear layers for dtype and device through these.
    @property
    def weight(self) -> Tensor | nn.Module:
        return self.base.weight

    @property
    def bias(self) -> Tensor | nn.Module | None:
        return self.base.bias

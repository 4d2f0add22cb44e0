"""A decoder seen as two halves: from the embeddings to a block, and from there to the last hidden states.

Both can be disturbed where they begin. These places lie outside of the blocks, which gradient checkpointing computes
again: a disturbed pass has the gradient of what it has computed, also when the model has been put back in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from lrft.errors import CheckFailed
from lrft.model.layers import blocks_of, decoder_of

Change = Callable[[Tensor], Tensor]


@dataclass
class Seen:
    """Hidden states (B, T, width) of a pass, before what was changed."""

    first: Tensor = field(init=False)
    """the embeddings"""
    middle: Tensor = field(init=False)
    """what the second half begins with"""
    last: Tensor = field(init=False)
    """those that logits are made of"""


def unchanged(hidden: Tensor) -> Tensor:
    return hidden


@contextmanager
def in_halves(
    model: Any, share: float, *, at_first: Change = unchanged, at_middle: Change = unchanged
) -> Iterator[Seen]:
    """Passes through `model` inside are seen, and go on with what the two functions make of the hidden states there.

    share: of the blocks, those of the first half; at least one block is on either side where there are two. Raises
    CheckFailed for a model whose blocks transformers does not declare.
    """
    decoder, seen = decoder_of(model), Seen()
    blocks = blocks_of(decoder)
    if not blocks:
        raise CheckFailed(
            f"transformers declares no blocks of {type(model).__name__}: it cannot be taken in two halves",
            "Choose another form of the penalty.",
        )
    block = blocks[min(len(blocks) - 1, max(1, round(share * len(blocks))))]
    name = next(name for name, module in decoder.named_modules() if module is block)
    parent, _, word = name.rpartition(".")

    def first(module: Any, inputs: Any, hidden: Tensor) -> Tensor:
        seen.first = hidden
        return at_first(hidden)

    def middle(hidden: Tensor) -> Tensor:
        seen.middle = hidden
        return at_middle(hidden)

    def last(module: Any, inputs: Any, answer: Any) -> None:
        seen.last = answer.last_hidden_state if hasattr(answer, "last_hidden_state") else answer[0]

    hooks = [model.get_input_embeddings().register_forward_hook(first), decoder.register_forward_hook(last)]
    setattr(decoder.get_submodule(parent), word, Joint(block, middle))
    try:
        yield seen
    finally:
        setattr(decoder.get_submodule(parent), word, block)
        for hook in hooks:
            hook.remove()


class Joint(nn.Module):
    """A block, and what is done to the hidden states before they reach it. What a decoder asks a block for, it has."""

    def __init__(self, block: nn.Module, change: Change) -> None:
        super().__init__()
        self.block, self.change = block, change

    def __getattr__(self, name: str) -> Any:
        if name == "block":
            return super().__getattr__(name)
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.block, name)

    def forward(self, hidden: Tensor, *others: Any, **more: Any) -> Any:
        return self.block(self.change(hidden), *others, **more)

"""torch.compile, block by block: all blocks are alike, so one is compiled and the others find it done."""

from __future__ import annotations

from typing import Any

import torch

from lrft.model.layers import blocks_of


def compile_blocks(model: Any) -> int:
    """Compile the blocks of a transformers model in place, for batches of any length. Returns how many there are."""
    from transformers import AttentionInterface

    from lrft.model.packed_attention import NAME, attention

    # Rows of other lengths would be another program: this function is called as it is.
    AttentionInterface.register(NAME, torch.compiler.disable(attention))
    blocks = blocks_of(model)
    for block in blocks:
        block.compile(dynamic=True)
    return len(blocks)

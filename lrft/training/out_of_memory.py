"""Out of memory: which keys of the recipe to change, in order of cost."""

from __future__ import annotations

from typing import Any

from lrft.errors import MemoryExhausted
from lrft.utils.hardware import says_out_of_memory


def memory_advice(error: BaseException, recipe: Any, parts: str = "") -> MemoryExhausted | None:
    """The error with advice, when `error` says that memory ran out; else None. parts: where the memory went."""
    if not says_out_of_memory(error):
        return None
    words = str(error)
    t = recipe.training
    keys = []
    if isinstance(t.micro_batch_tokens, int):
        keys.append(f"training.micro_batch_tokens: {max(1, t.micro_batch_tokens // 2)} (same result, a little slower)")
    elif t.micro_batch_size == "auto" or t.micro_batch_size > 1:
        fewer = 1 if t.micro_batch_size == "auto" else t.micro_batch_size // 2
        keys.append(f"training.micro_batch_size: {fewer} (same result, a little slower)")
    slower = {"none": ("light", "a few percent"), "light": ("medium", "a fifth"), "medium": ("full", "a third")}
    if t.gradient_checkpointing in slower:
        word, cost = slower[t.gradient_checkpointing]
        keys.append(f"training.gradient_checkpointing: {word} (same result, about {cost} slower)")
    keys.append("data.max_length: a smaller value")
    return MemoryExhausted(
        f"out of memory: {(words.splitlines() or ['allocation failed'])[0]}{parts}",
        "Cheapest first: " + "; ".join(keys),
    )

"""Whether a run looks for the size of its training passes before the first step."""

from __future__ import annotations

from lrft.adapters import compose
from lrft.recipe import Recipe

KEYS = ("training.micro_batch_size", "training.micro_batch_tokens")


def finds_tokens(recipe: Recipe, device: str) -> bool:
    """Whether it looks for the most tokens that fit a pass: where the recipe asks for it, and on a GPU where it says
    nothing of passes and they can be tried.

    Tried are rows that are known, so none of a stream; zero2 tries nothing, nor does an optimiser that takes gradients
    as they arrive. device: cuda or cpu.
    """
    if recipe.training.micro_batch_tokens == "auto":
        return True
    if device != "cuda" or any(recipe.where(key) != "default" for key in KEYS):
        return False
    owner = compose.compose_section(recipe.adapter).optimizer_owner
    taken = owner is not None and bool(owner.gradients_taken)
    return not (taken or recipe.data.streaming or recipe.distributed.strategy == "zero2")

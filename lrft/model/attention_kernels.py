"""Attention kernels by the names of `model.attention` and of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What transformers is asked for by the word of a recipe, where it is another. SDPA is asked of the whole: asked of each
# part it is refused for a model with a tower that has none; left to choose, parts take it where they can.
KERNELS = {"auto": None, "sdpa": {"": "sdpa"}}


def kernels_of(config: Any, changed: Mapping[str, str] = {}) -> dict[str, Any]:
    """The names of the attention kernels of a model ("") and of its parts, as `set_attn_implementation` takes them.

    Parts may have others than the whole: not all can take SDPA. changed: a name -> the one in its place.
    """
    name = config._attn_implementation or "eager"  # None: a part without attention
    parts = {key: part for key in config.sub_configs if (part := getattr(config, key, None)) is not None}
    return {"": changed.get(name, name), **{key: kernels_of(part, changed) for key, part in parts.items()}}

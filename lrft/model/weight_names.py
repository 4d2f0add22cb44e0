"""The names of layers of a loaded model -> the names of their tensors in the files of its folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lrft.errors import CheckFailed
from lrft.utils.safetensors_stream import TensorReader


def weight_keys(modules: Iterable[str], weights: list[Path]) -> dict[str, str]:
    """Name of each linear layer -> that of its weight in the files. Raises CheckFailed as `tensor_keys`."""
    names: set[str] = set()
    for path in weights:
        with TensorReader(path) as reader:
            names |= reader.entries.keys()
    found: dict[str, str] = {}
    for module in modules:
        words = f"{module}.weight".split(".")
        candidates = (".".join(words[at:]) for at in range(len(words) - 1))
        same_words = (name for name in names if sorted(name.split(".")) == sorted(words))
        key = next((name for name in candidates if name in names), None) or next(same_words, None)
        if key is None or key in found.values():
            raise CheckFailed(f"the base's files hold no tensor for {module}: its weights are stored under other names")
        found[module] = key
    return found

"""The names of layers of a loaded model -> the names of their tensors in the files of its folder."""

from __future__ import annotations

from collections.abc import Iterable

from lrft.errors import CheckFailed
from lrft.model.stored import Source, Stored


def weight_keys(modules: Iterable[str], stored: Stored) -> dict[str, str]:
    """Name of each linear layer -> that of its weight in the files.

    Raises CheckFailed where a layer's weight is not one tensor as it is stored.
    """
    return {module: key_of(module, stored.source(f"{module}.weight")) for module in modules}


def key_of(module: str, source: Source | None) -> str:
    if source is None:
        raise CheckFailed(f"the base's files have no tensor for {module}: they are stored under other names")
    if not source.as_it_is:
        raise CheckFailed(
            f"the base's files have no separate tensor for {module}: transformers builds its weight from "
            f"{', '.join(source.tensors[:3])}{' and more' * (len(source.tensors) > 3)}"
        )
    return source.tensors[0]

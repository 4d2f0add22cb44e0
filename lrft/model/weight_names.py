"""The names of layers of a loaded model -> the names of their tensors in the files of its folder."""

from __future__ import annotations

from collections.abc import Iterable

from lrft.export.merge import key_of
from lrft.model import stored as base


def weight_keys(modules: Iterable[str], stored: base.Stored) -> dict[str, str]:
    """Name of each linear layer -> that of its weight in the files.

    Raises CheckFailed where a layer's weight is not one tensor as it is stored.
    """
    return {module: key_of(module, stored.source(f"{module}.weight")) for module in modules}

"""How torch's allocator of a GPU begins. It reads the environment once, so this comes before torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from importlib.metadata import PackageNotFoundError, version

# Torch before 2.10 takes no notice of the name that it asks for.
NAMES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
KNOWS_THE_NEW = (2, 10)


def expandable_segments(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let segments grow: rows of all lengths otherwise leave memory in pieces that fit nothing. What the user has set
    stays."""
    if any(name in environment for name in NAMES):
        return
    try:
        installed = tuple(int(part) for part in version("torch").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return
    environment[NAMES[installed >= KNOWS_THE_NEW]] = "expandable_segments:True"

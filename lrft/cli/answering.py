"""What the commands that answer have in common: opening their target, and showing an answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lrft.cli.arguments import adapter_in, loading, tell_choice

if TYPE_CHECKING:
    from lrft.serving.load import Trained


def chosen_adapter(target: str) -> Path | None:
    """The adapter that is meant by a run or an adapter, said where it is not a run's best; None for a model."""
    adapter = adapter_in(target)
    if adapter is not None:
        tell_choice(Path(target), adapter)
    return adapter


def opened(target: str, base: str | None, trusted: bool, put: str | None = None) -> Trained:
    """The loaded target. put: chat or text, how a prompt of plain text is put; None: as the run's rows were."""
    with loading():
        from lrft.serving.load import load

    chosen_adapter(target)
    return load(target, base, trusted, put)


def show(text: str) -> bool:
    """Write a stretch of an answer as it is; a model's control characters go to a terminal written out."""
    from lrft.utils.text import visible

    lines = text.split("\n")
    sys.stdout.write("\n".join(map(visible, lines)) if sys.stdout.isatty() else text)
    sys.stdout.flush()
    return True

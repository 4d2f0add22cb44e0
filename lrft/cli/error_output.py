"""Error output of commands. Works without torch."""

from __future__ import annotations

import os
import sys

from lrft.errors import LrftError
from lrft.utils.text import visible


def tell(error: LrftError) -> None:
    """Say what went wrong: once for all processes where each finds the same mistake, else with the process's number."""
    rank = int(os.environ.get("RANK", "0"))
    if rank and error.exit_code in (2, 3):
        return
    say("\n".join([*([f"process {rank + 1}:"] if rank else []), *error.lines()]))


def is_lack_of_memory(error: Exception) -> bool:
    """Whether Python or torch says that no memory is left."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def unexpected(error: Exception) -> int:
    """A bug of lrft: the traceback, on the screen and in a file. Returns the exit code."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    handle, name = tempfile.mkstemp(prefix="lrft-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    say(text)
    say(f"internal error: {type(error).__name__}. The traceback is in {name}; please report it.")
    return 1


def say(text: str) -> None:
    """To the standard error. Names of files and rows of data may hold escape sequences: they are written out."""
    for line in text.split("\n"):
        print(visible(line), file=sys.stderr)

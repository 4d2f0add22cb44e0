"""`lrft inspect`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from lrft.adapters.peft_import import is_peft_folder
from lrft.errors import UsageError
from lrft.inspection import render
from lrft.inspection.inspect import inspect_adapter
from lrft.runs.locate import adapter_of, run_of
from lrft.tracking.console import PROGRESS_SECONDS, Reporter
from lrft.utils import files


def inspect(
    source: Path,
    out: Path | None,
    *,
    base_model: str | None,
    top: int,
    epsilon: float,
    accept_other_base: bool,
    as_json: bool,
) -> None:
    """`lrft inspect`."""
    adapter = source if is_peft_folder(source) else adapter_of(source)
    folder = out or run_of(adapter)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "Name a folder with -o.")
    with watched("inspecting") as progress:
        found = inspect_adapter(
            adapter,
            base_model=base_model,
            top=top,
            epsilon=epsilon,
            accept_other_base=accept_other_base,
            progress=progress,
        )
    if folder is not None:
        with files.room_for(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / "inspect.json", found.to_dict())
        files.write_bytes(folder / "inspect.png", render.picture(found))
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    written = f"inspect.json and inspect.png in {folder}" if folder else "no file was written: -o FOLDER names a place"
    with Reporter(None) as reporter:
        for line in [*render.lines(found), "", written]:
            reporter.line(line)


@contextmanager
def watched(word: str) -> Iterator[Callable[[int, int], None]]:
    """Tells on the standard error how far something is: a live line on a terminal, else a line now and then."""
    told = time.monotonic()
    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else nullcontext() as live:

        def progress(done: int, total: int) -> None:
            nonlocal told
            text = f"{word}: {done:,} of {total:,}"
            if live is not None:
                live.update(Text(text), refresh=True)
            elif done < total and time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                print(text, file=sys.stderr)

        yield progress

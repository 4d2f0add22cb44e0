"""`lrft inspect`: analyse an adapter's weight updates."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.arguments import AsJson, Base, loading, tell_choice, typed
from lrft.cli.progress import shown
from lrft.errors import UsageError
from lrft.utils.text import count

if TYPE_CHECKING:
    from lrft.inspection.inspect import Inspection


def inspect(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|ADAPTER", help="A run (its best adapter), or an adapter folder of lrft or of PEFT."
        ),
    ],
    base: Base = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder for inspect.json and inspect.png. Default: the run folder."),
    ] = None,
    top: Annotated[
        int, typer.Option(min=1, help="Number of leading singular vectors to test as intruder dimensions.")
    ] = 10,
    epsilon: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Threshold: an intruder's largest |cosine| with the base's singular vectors is below it."
        ),
    ] = 0.5,
    accept_other_base: Annotated[
        bool,
        typer.Option("--accept-other-base", help="Accept a base other than the one the adapter was trained on."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Analyse an adapter's weight updates: norms, ranks, spectra and intruder dimensions per module.

    Example: lrft inspect runs/first
    """
    from lrft.runs.locate import adapter_folder, run_of

    adapter = adapter_folder(source)
    folder = out or run_of(adapter)
    if folder is not None and folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "Choose a folder with -o.")
    with loading():
        from lrft.inspection.inspect import inspect_adapter
        from lrft.runs.after import noted

    tell_choice(source, adapter)
    with noted(run_of(adapter), "inspect", typed()) as kept:
        with shown() as progress:
            found = inspect_adapter(
                adapter,
                base_model=base,
                top=top,
                epsilon=epsilon,
                accept_other_base=accept_other_base,
                progress=partial(progress, "inspecting"),
            )
        if folder is not None:
            write(found, folder)
            kept["written"] = f"inspect.json and inspect.png in {folder}"
        kept["update"] = summary(found)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        tell(found, folder)


def write(found: Inspection, folder: Path) -> None:
    """inspect.json and inspect.png."""
    from lrft.inspection import render
    from lrft.utils import files

    with files.room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / "inspect.json", found.to_dict())
    files.write_bytes(folder / "inspect.png", render.picture(found))


def summary(found: Inspection) -> str:
    """All modules together, in a line."""
    total = found.total
    share = "" if total.relative is None else f" ({total.relative:.2%} of the base's)"
    return (
        f"{count(total.modules, 'module')}: norm {total.norm:.4g}{share}, stable rank {total.stable_rank:.2f} in the "
        f"mean, {count(total.intruders, 'intruder dimension')}"
    )


def tell(found: Inspection, folder: Path | None) -> None:
    """The tables, and where the files are."""
    from lrft.inspection import render
    from lrft.tracking.console import Reporter

    written = f"inspect.json and inspect.png in {folder}" if folder else "no file was written; -o FOLDER writes them"
    with Reporter(None) as reporter:
        for line in [*render.lines(found), "", written]:
            reporter.line(line)

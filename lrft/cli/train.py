"""`lrft train`: train in this process, or in one process per device; --dry-run only prints.

Torch is loaded as late as can be: the process that only starts others needs no more of it than the number of GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.after import follow
from lrft.cli.arguments import Overrides, RecipePath, as_written, loading, read_recipe, refuse_missing, refuse_unready
from lrft.errors import UsageError

if TYPE_CHECKING:
    from lrft.recipe import Recipe


@dataclass(frozen=True)
class Flags:
    """The options that each process of a run takes."""

    resume: str | None
    fresh: bool
    accept_changes: bool
    quiet: bool
    allow_code: bool

    def arguments(self) -> list[str]:
        """The flags on a command line."""
        given = {"--fresh": self.fresh, "--accept-changes": self.accept_changes, "--quiet": self.quiet}
        given |= {"--allow-code": self.allow_code}
        resume = [f"--resume={self.resume}"] if self.resume else []
        return [*resume, *(flag for flag, on in given.items() if on)]


def train(
    recipe: RecipePath,
    overrides: Overrides = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="[last|best|PATH]", help="Resume from the last checkpoint, or from the one given."),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Rename an existing run folder and start from scratch.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="With --resume: continue even if recipe, data or base have changed."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print warnings only.")] = False,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Run the Python functions that evaluation.metrics names.")
    ] = False,
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Number of processes on this machine, one per device. Default: one per GPU."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what each process would do, without loading weights or training.")
    ] = False,
) -> None:
    """Fine-tune a model with the adapter and data of a recipe.

    Example: lrft train recipe.yaml training.learning_rate=1e-4
    """
    from lrft.loading.packages import refuse_missing_packages

    if resume and fresh:
        raise UsageError("--resume and --fresh cannot be used together")
    if resume and dry_run:
        raise UsageError("--resume and --dry-run cannot be used together", "A dry run with --fresh renames nothing.")
    loaded = read_recipe(recipe, overrides)
    refuse_missing(loaded)
    refuse_missing_packages(loaded)
    flags = Flags(resume, fresh, accept_changes, quiet, allow_code)
    with as_written(loaded):
        count, on_gpus = processes_to_start(devices)
        if dry_run:
            tell_processes(loaded, count, on_gpus, fresh=fresh)
        elif count > 1:
            raise typer.Exit(start_processes(recipe, overrides or [], flags, count, on_gpus))
        else:
            train_here(loaded, recipe, flags)


def processes_to_start(devices: int | None) -> tuple[int, bool]:
    """How many processes are ours to start, and whether each has a GPU: `devices`, or one for each GPU.

    One, without a GPU, in a process that a launcher has started: it takes its place among the others. Raises
    LrftError for a launcher that is not supported, UsageError for --devices under a launcher.
    """
    from lrft.distributed import launch

    launch.refuse_foreign()
    launch.adopt_slurm()
    if launch.is_launched():
        if devices is not None:
            raise UsageError("--devices: this process was already started by a launcher", "Remove --devices.")
        return 1, False
    with loading():
        gpus = launch.gpus()
    count = devices or max(1, gpus)
    return count, gpus >= count


def tell_processes(recipe: Recipe, count: int, on_gpus: bool, *, fresh: bool) -> None:
    """`--dry-run`."""
    with loading():
        from lrft.distributed import launch
        from lrft.planning.dry_run import dry_run

    here = [launch.this_process()] if launch.is_launched() else launch.planned(count, gpu=on_gpus)
    dry_run(recipe, here, fresh=fresh)


def start_processes(source: Path, overrides: Sequence[str], flags: Flags, count: int, on_gpus: bool) -> int:
    """The same command once for each device. Returns an exit code."""
    from lrft.distributed import launch

    return launch.run_on(count, ["train", str(source), *overrides, *flags.arguments()], gpu=on_gpus)


def train_here(recipe: Recipe, source: Path, flags: Flags) -> None:
    """Train in this process. Raises LrftError in most of its kinds."""
    with loading():
        from lrft.distributed import processes
        from lrft.training.run import train as run
        from lrft.training.state import Options
        from lrft.utils.hardware import release_memory

    refuse_unready(recipe)
    run(
        recipe,
        Options(
            flags.resume,
            flags.fresh,
            flags.accept_changes,
            flags.quiet,
            source=None if source.is_dir() else source,
            allow_code=flags.allow_code,
        ),
    )
    processes.leave()
    release_memory()  # what follows are processes of their own on the same devices
    follow(recipe, quiet=flags.quiet)

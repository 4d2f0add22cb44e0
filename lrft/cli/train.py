"""Where a run takes place: in this process, in one process for each device, or nowhere but on paper.

Torch is loaded as late as can be: the process that only starts others needs no more of it than the number of GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lrft.distributed import launch
from lrft.errors import UsageError
from lrft.model.load import importing
from lrft.recipe import Recipe


def start(
    recipe: Recipe,
    source: Path,
    overrides: Sequence[str],
    *,
    resume: str | None,
    fresh: bool,
    accept_changes: bool,
    quiet: bool,
    devices: int | None,
    dry_run: bool,
) -> int:
    """Train `recipe`, which was read from `source` with `overrides`. Returns an exit code.

    A process that a launcher has started takes its place among the others; else there is one for each GPU, or as many
    as `devices` says. Raises LrftError in most of its kinds.
    """
    launch.refuse_foreign()
    launch.adopt_slurm()
    if launch.is_launched():
        if devices is not None:
            raise UsageError("--devices: a launcher has started this process as one of several", "Leave --devices out.")
        count, on_gpus = 1, False  # of processes that are ours to start: this one
    else:
        with importing():
            gpus = launch.gpus()
        count = devices or max(1, gpus)
        on_gpus = gpus >= count
    if dry_run:
        with importing():
            from lrft.planning.dry_run import dry_run as tell

        here = [launch.this_process()] if launch.is_launched() else launch.planned(count, gpu=on_gpus)
        tell(recipe, here, fresh=fresh)
        return 0
    if count > 1:
        flags = {"--fresh": fresh, "--accept-changes": accept_changes, "--quiet": quiet}
        more = [*([f"--resume={resume}"] if resume else []), *(flag for flag, given in flags.items() if given)]
        return launch.run_on(count, ["train", str(source), *overrides, *more], gpu=on_gpus)
    with importing():
        from lrft.distributed import processes
        from lrft.training.run import train
        from lrft.training.state import Options

    train(recipe, Options(resume, fresh, accept_changes, quiet, source=None if source.is_dir() else source))
    processes.leave()
    return 0

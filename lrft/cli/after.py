"""The commands of a recipe's `after`, each in a process of its own, when the training has ended well."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from lrft.errors import AfterFailed
from lrft.utils.text import count

if TYPE_CHECKING:
    from lrft.recipe import Recipe
    from lrft.runs.after_training import Ended

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
STOPPED = (130, 143)


def follow(recipe: Recipe, *, quiet: bool) -> None:
    """Run the commands, the first process alone. The run is whole before and after: nothing in it is changed but its
    pages, which then show how they ended. A command that is done already for this state of the run is not repeated.

    Raises AfterFailed, with the commands to repeat, when one has failed or was stopped.
    """
    from lrft.runs.after_training import commands, keep, kept, shown
    from lrft.utils.files import read_json

    run = Path(recipe.output_dir)
    wanted = list(zip(commands(recipe, recipe.output_dir), shown(recipe), strict=True))
    if not wanted or os.environ.get("RANK", "0") != "0":
        return
    step = read_json(run / "run.json")["result"]["steps done"]
    done = [one for one in kept(run) if not one.exit_code and one.step == step]
    ended: list[Ended] = []
    for words, line in wanted:
        ended.append(once(words, line, step, done, quiet=quiet))
        keep(run, ended)
        if ended[-1].exit_code in STOPPED:
            break
    tell(recipe, run, ended, [line for _, line in wanted[len(ended) :]], quiet=quiet)


def once(words: Sequence[str], line: str, step: int, done: Sequence[Ended], *, quiet: bool) -> Ended:
    """How a command ended, now or before."""
    from lrft.runs.after_training import Ended

    before = next((one for one in done if one.command == line), None)
    if before is not None:
        return before
    if not quiet:
        print(f"\n{line}", flush=True)
    return Ended(line, step, start(words, quiet=quiet))


def start(words: Sequence[str], *, quiet: bool) -> int:
    """A command of lrft as a process that knows nothing of this one's place among others. Returns its exit code, as a
    shell would say it. Signals are handed on, each once."""
    environment = {name: value for name, value in os.environ.items() if name not in PLACE}
    process = subprocess.Popen(
        [sys.executable, "-m", "lrft", *words],
        env=environment,
        stdout=subprocess.DEVNULL if quiet else None,
        start_new_session=True,  # a terminal's Ctrl-C comes here, and from here to it once
    )

    def hand_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def tell(recipe: Recipe, run: Path, ended: Sequence[Ended], left: Sequence[str], *, quiet: bool) -> None:
    """Print how the commands ended, and write it into the run's pages. Raises AfterFailed."""
    from lrft.report.markdown import write_report
    from lrft.report.run_page import write_page
    from lrft.tracking.console import Reporter

    with Reporter(run, quiet=quiet) as reporter:
        reporter.table([("after", [one.line for one in ended])])
    if "markdown" in recipe.logging.report:
        write_report(run)
    if "html" in recipe.logging.report:
        write_page(run)
    again = [*(one.command for one in ended if one.exit_code), *left]
    if again:
        raise AfterFailed(
            f"the run is whole, but {count(len(again), 'command')} of `after` failed or did not begin",
            "\n  ".join(["Repeat by hand what is left:", *again]),
        )

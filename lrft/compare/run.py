"""`lrft compare`: plan, train, measure, write."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrft.compare import budget, estimate, queries, result, write
from lrft.compare.budget import Choice
from lrft.compare.config import Comparison
from lrft.compare.fingerprints import KEPT, Hashes, refuse_other_contents
from lrft.compare.grid import Rank
from lrft.compare.jobs import NOT_FAILURES, Job, last_words, make_jobs, refuse_other_recipes, write_recipe
from lrft.compare.pool import Pool, Task, visible_gpus
from lrft.distributed import launch
from lrft.errors import LrftError, NonFinite, Stopped
from lrft.runs.verdict import worse_than_base
from lrft.tracking.console import Reporter
from lrft.utils import files
from lrft.utils.text import count, decimals, duration

GOING_ON = "this table contains only the runs finished so far"


def run(comparison: Comparison, reporter: Reporter, *, jobs: int, dry_run: bool) -> list[Job]:
    """Train what is not finished, measure it, and write the pages. Returns all runs.

    Raises LrftError in its kinds: Stopped after a signal, LrftError when a run failed otherwise than by diverging.
    """
    choices = budget.choose(comparison)
    made = make_jobs(comparison, [rank_of(comparison, choice) for choice in choices])
    refuse_other_recipes(made)
    refuse_other_contents(made, hashes := Hashes())
    reporter.table(estimate.plan_rows(comparison, made, choices))
    if dry_run:
        reporter.table(estimate.list_rows(made))
        reporter.table(estimate.time_rows(made, jobs))
        return made
    with taken(comparison.output), Pool(jobs, visible_gpus(launch.gpus())) as pool:
        try:
            train(made, hashes, pool, reporter)
            ask(comparison, made, pool, reporter)
        except Stopped:
            tell(comparison, made, choices, reporter, stopped=True)
            raise
    tell(comparison, made, choices, reporter)
    failed = [job for job in made if job.state == "failed"]
    if failed:
        raise LrftError(
            f"{len(failed)} of {count(len(made), 'run')} failed and are not in the table",
            f"See {comparison.output / write.NAMES[0]}. Run the same command again to retry them.",
        )
    return made


def rank_of(comparison: Comparison, choice: Choice) -> Rank:
    return (choice.rank, f"budget: {comparison.budget}") if choice.chosen else None


@contextmanager
def taken(folder: Path) -> Iterator[None]:
    """The folder of a comparison, made and held: two of the same would train the same runs."""
    with files.room_for(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LrftError(f"{folder} is in use by another lrft compare") from None
        yield
    finally:
        os.close(handle)  # which releases the lock


def train(jobs: Sequence[Job], hashes: Hashes, pool: Pool, reporter: Reporter) -> None:
    """Every run that is not finished."""
    waiting = [job for job in jobs if job.state not in ("finished", "diverged")]
    if len(waiting) < len(jobs):
        reporter.line(f"{len(jobs) - len(waiting)} of {count(len(jobs), 'run')} are already finished")
    done = len(jobs) - len(waiting)

    def task(job: Job) -> Task:
        def begins() -> None:
            write_recipe(job)
            # How an earlier attempt ended says nothing of this one.
            job.note(exit=None, **{KEPT: hashes.of(job.recipe)})

        before = job.record.get("seconds", 0.0) if job.state == "interrupted" else 0.0

        def ended(code: int, seconds: float) -> None:
            nonlocal done
            said = "" if code == 0 else last_words(job.beside(".log"))
            job.note(exit=code, said=said, seconds=round(before + seconds, 1), jobs=pool.jobs)
            done += code not in NOT_FAILURES or code == 0
            reporter.line(f"[{done}/{len(jobs)}] {job.label}   {_verdict(job, code)}   {duration(before + seconds)}")

        return Task(job.label, job.arguments, job.beside(".log"), ended, begins=begins)

    pool.run([task(job) for job in waiting])


def _verdict(job: Job, code: int) -> str:
    if job.state == "finished":
        loss, worse = queries.metric_of(job, "loss"), worse_than_base(job.facts.get("result", {}))
        return worse or ("done" if loss is None else f"validation loss {decimals(loss, 4)}")
    if code == NonFinite.exit_code:
        return f"diverged: {job.record['said']}"
    return "stopped" if code in NOT_FAILURES else f"FAILED with exit code {code}: {job.record['said']}"


def ask(comparison: Comparison, jobs: Sequence[Job], pool: Pool, reporter: Reporter) -> None:
    """What finished runs do not say of themselves: first the metric, then what is asked of the best ones alone."""
    finished = [job for job in jobs if job.state == "finished"]
    _run(pool, reporter, "measuring", [queries.evaluation(job, comparison.metric) for job in finished])
    best = result.best_points(comparison, jobs)
    tasks = [queries.merge(result.best_job(comparison, those), comparison) for _, those in best.values()]
    if comparison.forgetting is not None:
        tasks += [queries.forgetting(job, comparison.forgetting) for _, those in best.values() for job in those]
    _run(pool, reporter, "evaluating the best runs", tasks)


def _run(pool: Pool, reporter: Reporter, what: str, tasks: Sequence[Task | None]) -> None:
    wanted = [task for task in tasks if task is not None]
    if wanted:
        reporter.line(f"{what}: {count(len(wanted), 'command')}")
        pool.run(wanted)


def tell(
    comparison: Comparison, jobs: Sequence[Job], choices: Sequence[Choice], reporter: Reporter, *, stopped: bool = False
) -> None:
    """The pages, and the table on the screen. stopped: before everything was done."""
    found: dict[str, Any] = result.gather(comparison, jobs, choices)
    if stopped:
        found["warnings"].insert(0, GOING_ON)
    written = write.write(found, comparison.output)
    for line in write.screen(found):
        reporter.line(line)
    for warning in found["warnings"]:
        reporter.warn(warning)
    reporter.table([("written", "   ".join(str(path) for path in written))])

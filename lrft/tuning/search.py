"""`lrft tune`: candidates are trained rung by rung, the best of each go on, and the best of all is told."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lrft.compare import queries
from lrft.compare.fingerprints import Hashes, refuse_other_contents
from lrft.compare.jobs import Job, refuse_other_recipes
from lrft.compare.pool import Pool, visible_gpus
from lrft.compare.run import taken, train
from lrft.data.sampler import batch_schedule
from lrft.distributed import launch
from lrft.errors import LrftError, UsageError
from lrft.loading.from_recipe import find_base, load_data
from lrft.runs.metrics import of_kind, read_metrics, values
from lrft.tracking.console import Reporter
from lrft.tuning.candidates import Candidate, Space, at_rate, beyond
from lrft.tuning.rungs import EXTENSIONS, Cost, Rung, plan
from lrft.utils import files
from lrft.utils.text import count, decimals, duration

PROBE_STEPS = 4
KEPT = "search.json"


@dataclass(frozen=True)
class Asked:
    """What a search was asked for. budget: seconds, None for no limit."""

    candidates: tuple[Candidate, ...]
    budget: float | None
    jobs: int

    def facts(self) -> dict[str, Any]:
        """What has to be the same when the search continues. As JSON values."""
        return {"candidates": [one.values for one in self.candidates], "budget": self.budget, "jobs": self.jobs}


@dataclass
class Search:
    """A search and how far it is: everything follows from the runs that have ended, so it can be begun again."""

    space: Space
    asked: Asked
    out: Path
    full: int
    """optimiser steps of the recipe"""
    cost: Cost | None = None
    """of a run, as it was measured; None without a stated time"""
    rungs: list[Rung] = field(default_factory=list)
    tried: dict[tuple[int, Candidate], Job] = field(default_factory=dict)
    """by steps and candidate"""
    remarks: list[str] = field(default_factory=list)

    def job(self, candidate: Candidate, steps: int) -> Job:
        key = steps, candidate
        if key not in self.tried:
            self.tried[key] = self.space.job(candidate, steps, self.full, self.out)
        return self.tried[key]

    def loss(self, candidate: Candidate, steps: int) -> float:
        """Of the best checkpoint; infinite for a run that diverged or failed."""
        job = self.tried.get((steps, candidate))
        found = queries.metric_of(job, "loss") if job is not None and job.state == "finished" else None
        return math.inf if found is None or not math.isfinite(found) else found

    def at(self, steps: int) -> list[Candidate]:
        """Candidates that were tried for so many steps, the best first."""
        those = [candidate for n, candidate in self.tried if n == steps]
        return sorted(those, key=lambda one: (self.loss(one, steps), one.rate))

    @property
    def seconds(self) -> float:
        """What all runs have taken, one at a time."""
        return sum(job.record.get("seconds", 0.0) for job in self.tried.values())


def full_steps(space: Space) -> int:
    """Optimiser steps of the recipe as it is. Reads the data."""
    _, prepared = load_data(space.recipe, find_base(space.recipe))
    return batch_schedule(space.recipe, prepared.train).total_steps


def run(space: Space, asked: Asked, out: Path) -> Search:
    """The whole search, or what is left of it.

    Raises UsageError for a folder that holds another search, Stopped after a signal, LrftError when no run ended well.
    """
    with Reporter(None) as reporter, taken(out):
        refuse_other_search(out, asked)
        search = Search(space, asked, out, full_steps(space))
        hashes = Hashes()
        with Pool(asked.jobs, visible_gpus(launch.gpus())) as pool:
            search.cost = measured_cost(search, hashes, pool, reporter)
            budget = None if asked.budget is None else asked.jobs * asked.budget
            search.rungs = plan(len(asked.candidates), search.full, budget, search.cost)
            tell_plan(search, reporter)
            candidates = list(asked.candidates)
            for number, rung in enumerate(search.rungs):
                if number and not affordable(search, rung):
                    search.remarks.append(
                        f"the time was spent before the runs of {count(rung.steps, 'step')}, which took longer than "
                        "planned"
                    )
                    search.rungs = search.rungs[:number]
                    break
                last = number == len(search.rungs) - 1
                train_rung(search, candidates, rung.steps, hashes, pool, reporter)
                if number == 0 or last:
                    extend(search, rung.steps, hashes, pool, reporter)
                if not last:
                    following = search.rungs[number + 1].candidates
                    ranked = [one for one in search.at(rung.steps) if math.isfinite(search.loss(one, rung.steps))]
                    candidates = ranked[:following]
            compare_neighbours(search, pool, reporter)
        return search


def refuse_other_search(out: Path, asked: Asked) -> None:
    """Raises UsageError where the folder holds a search that was asked for something else; else keeps what is asked."""
    path = out / KEPT
    if path.is_file():
        before = files.read_json(path)
        now = asked.facts()
        differing = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
        if differing:
            raise UsageError(f"{out} holds a search with other {differing[0]}", "Choose another folder with --out.")
    else:
        files.write_json(path, asked.facts())


def measured_cost(search: Search, hashes: Hashes, pool: Pool, reporter: Reporter) -> Cost | None:
    """What a run costs, measured on a short one; None without a stated time."""
    asked = search.asked
    if asked.budget is None:
        return None
    steps = min(PROBE_STEPS, search.full)
    middle = asked.candidates[len(asked.candidates) // 2]
    job = search.space.job(middle, steps, search.full + 1, search.out / "probe")
    reporter.line(f"a run of {count(steps, 'step')} says how long they take")
    train_jobs([job], hashes, pool, reporter)
    if job.state not in ("finished", "diverged"):
        raise LrftError(f"the first run failed: {job.record.get('said', '')}", f"See {job.beside('.log')}.")
    taken = values(of_kind(read_metrics(job.folder / "metrics.jsonl")[0], "step"), "seconds")
    return cost_of(taken, job.record["seconds"])


def cost_of(steps: Sequence[float], seconds: float) -> Cost:
    """steps: seconds of each step of a run that took `seconds`. The first step is slower than those that follow."""
    each = statistics.median(steps) if steps else 0.0
    return Cost(each, max(seconds - each * len(steps), 0.0))


def affordable(search: Search, rung: Rung) -> bool:
    """Whether a rung still fits into the stated time, if its runs are as much slower than planned as those so far."""
    asked, cost = search.asked, search.cost
    if asked.budget is None or cost is None:
        return True
    planned = sum(cost.of(steps) for steps, _ in search.tried)
    return (
        search.seconds / planned * rung.candidates * cost.of(rung.steps) <= asked.jobs * asked.budget - search.seconds
    )


def train_rung(
    search: Search, candidates: Sequence[Candidate], steps: int, hashes: Hashes, pool: Pool, reporter: Reporter
) -> None:
    """All candidates for so many steps. Raises LrftError when none of them ended well."""
    train_jobs([search.job(one, steps) for one in candidates], hashes, pool, reporter)
    best = search.at(steps)[0]
    if not math.isfinite(search.loss(best, steps)):
        job = search.job(best, steps)
        raise LrftError(
            f"no run of {count(steps, 'step')} ended well; the last words of one: {job.record.get('said', '')}",
            f"See {job.beside('.log')}. Run the same command again to retry runs that failed.",
        )
    reporter.line(f"{count(steps, 'step')}: best {best.label}, loss {decimals(search.loss(best, steps), 4)}")


def train_jobs(jobs: Sequence[Job], hashes: Hashes, pool: Pool, reporter: Reporter) -> None:
    refuse_other_recipes(jobs)
    refuse_other_contents(jobs, hashes)
    train(jobs, hashes, pool, reporter)


def extend(search: Search, steps: int, hashes: Hashes, pool: Pool, reporter: Reporter) -> None:
    """Try rates beyond the range while the best one lies on its border."""
    for _ in range(EXTENSIONS):
        best = search.at(steps)[0]
        rate = beyond(rates_of(search, best), best.rate)
        if rate is None:
            return
        reporter.line(f"the best learning rate, {best.rate:g}, lies on the border of the range: {rate:g} is tried too")
        train_rung(search, [at_rate(best, rate)], steps, hashes, pool, reporter)


def rates_of(search: Search, candidate: Candidate) -> list[float]:
    """Every rate that was tried with a candidate's rank and method, by rising value."""
    return sorted({one.rate for _, one in search.tried if one.group == candidate.group})


def best_of(search: Search) -> tuple[Candidate, int]:
    """The best candidate of the last rung that was trained, and its steps."""
    steps = search.rungs[-1].steps
    return search.at(steps)[0], steps


def neighbours(search: Search) -> list[tuple[Candidate, int]]:
    """The next lower and higher rate that ended well, each with the most steps that both were trained for."""
    best, _ = best_of(search)
    found = []
    rates = rates_of(search, best)
    at = rates.index(best.rate)
    for rate in [*rates[max(at - 1, 0) : at], *rates[at + 1 : at + 2]]:
        other = at_rate(best, rate)
        shared = [n for n, one in search.tried if one == other and (n, best) in search.tried]
        finite = [n for n in shared if all(math.isfinite(search.loss(one, n)) for one in (best, other))]
        if finite:
            found.append((other, max(finite)))
    return found


def compare_neighbours(search: Search, pool: Pool, reporter: Reporter) -> None:
    """Ask whether the rows tell the best from its neighbours."""
    best, _ = best_of(search)
    tasks = [queries.against(search.job(best, n), search.job(other, n)) for other, n in neighbours(search)]
    wanted = [task for task in tasks if task is not None]
    if wanted:
        reporter.line("comparing the best with its neighbours, row by row")
        for task in wanted:  # one after the other: their answers are kept in one file
            pool.run([task])


def tell_plan(search: Search, reporter: Reporter) -> None:
    """The rungs, before anything is trained."""
    lines = [f"{count(rung.candidates, 'candidate')} for {count(rung.steps, 'step')}" for rung in search.rungs]
    if search.rungs[-1].steps < search.full:
        lines.append(f"the recipe has {count(search.full, 'step')}: more than the time is enough for")
    budget = "no limit of time" if search.asked.budget is None else f"within {duration(search.asked.budget)}"
    reporter.table([("search", [budget]), ("rungs", lines)])

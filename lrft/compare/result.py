"""Results of a comparison from its run folders: one dict of JSON values, from which every page is generated."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from lrft.compare import intervals, queries
from lrft.compare.budget import Choice
from lrft.compare.config import Comparison
from lrft.compare.grid import Point, Variant, shown
from lrft.compare.jobs import Job, last_words
from lrft.runs.metrics import of_kind, read_metrics, values
from lrft.runs.verdict import worse_than_base

Facts = dict[str, Any]
FAR = 0.1
"""relative difference in trainable parameters from the baseline above which a warning is given"""


def best_points(comparison: Comparison, jobs: Sequence[Job]) -> dict[str, tuple[Point, list[Job]]]:
    """For each run the point of the grid with the best mean over seeds, and its jobs in the order of the seeds.

    A point counts when all its seeds have a metric. A run without such a point is left out.
    """
    best = {}
    for variant in comparison.variants:
        whole = [
            (found, point, those)
            for point in variant.points
            if None not in (found := _values(comparison, those := _jobs(jobs, variant, point)))
        ]
        if whole:
            sign = 1 if comparison.lower_is_better else -1
            _, point, those = min(whole, key=lambda one: sign * intervals.mean([v for v in one[0] if v is not None]))
            best[variant.name] = (point, those)
    return best


def _jobs(jobs: Sequence[Job], variant: Variant, point: Point) -> list[Job]:
    return [job for job in jobs if job.variant.name == variant.name and job.point is point]


def _values(comparison: Comparison, jobs: Sequence[Job]) -> list[float | None]:
    return [queries.metric_of(job, comparison.metric) if job.state == "finished" else None for job in jobs]


def best_job(comparison: Comparison, jobs: Sequence[Job]) -> Job:
    """The seed with the best metric: the one whose merge is tried."""
    sign = 1 if comparison.lower_is_better else -1
    return min(jobs, key=lambda job: sign * (queries.metric_of(job, comparison.metric) or 0.0))


def gather(comparison: Comparison, jobs: Sequence[Job], choices: Sequence[Choice]) -> Facts:
    """Everything that the pages say."""
    best = best_points(comparison, jobs)
    places = [(variant, point) for variant in comparison.variants for point in variant.points]
    by_place = {(variant.name, id(point)): choice for (variant, point), choice in zip(places, choices, strict=True)}
    rows = []
    for variant in comparison.variants:
        point, those = best.get(variant.name, (variant.points[0], []))
        rows.append(_row(comparison, variant, point, those, by_place[variant.name, id(point)], best))
    points = [_point(comparison, variant, point, _jobs(jobs, variant, point)) for variant, point in places]
    failed = [job for job in jobs if job.state in ("failed", "diverged")]
    return {
        "comparison": str(comparison.path),
        "metric": comparison.metric,
        "better": "lower" if comparison.lower_is_better else "higher",
        "baseline": comparison.baseline,
        "budget": comparison.budget,
        "seeds": list(comparison.seeds),
        "runs": {state: sum(job.state == state for job in jobs) for state in sorted({job.state for job in jobs})},
        "methods": rows,
        "grid": points,
        "failed": [
            {
                "run": job.label,
                "exit": job.record.get("exit"),
                "said": job.record.get("said") or last_words(job.beside(".log")),
                "log": str(job.beside(".log")),
            }
            for job in failed
        ],
        "measured_on": measured_on([job for _, those in best.values() for job in those]),
        "warnings": [*_warnings(comparison, best, rows), *unmeasured(comparison, jobs), *_questions(jobs)],
        "interval": intervals.FORMULA,
    }


def _row(
    comparison: Comparison, variant: Variant, point: Point, jobs: list[Job], choice: Choice, best: dict[str, Any]
) -> Facts:
    """One run at its best point. Figures that are not known are None."""
    values = [value for value in _values(comparison, jobs) if value is not None]
    facts = jobs[0].facts.get("adapter", {}) if jobs else {}
    trained = facts.get("trainable parameters", choice.trained)
    chosen = best_job(comparison, jobs) if jobs else None
    merged = (queries.answer(chosen, "merge") or {}) if chosen else {}
    return {
        "run": variant.name,
        "methods": facts.get("methods"),
        "rank": choice.rank,
        "rank_matters": not choice.fixed,
        "rank_note": choice.note,
        "trained": trained,
        "beside": choice.beside,
        "deviation": trained / choice.baseline - 1,
        "best": point.plain() if jobs else None,
        "values": dict(zip(map(str, comparison.seeds), values, strict=True)) if jobs else {},
        "mean": intervals.mean(values) if jobs else None,
        "spread": intervals.spread(values) if jobs else None,
        **_against(comparison, variant, values, best),
        **_cost(jobs),
        **_forgotten(jobs),
        "merge_difference": merged.get("relative"),
        "merge_check": _merge_words(merged, chosen),
        "exports_to": facts.get("exports to"),
        "folders": [str(job.folder) for job in jobs],
        "best_folder": str(chosen.folder) if chosen else None,
    }


def _against(comparison: Comparison, variant: Variant, values: list[float], best: dict[str, Any]) -> Facts:
    """The paired difference to the baseline; nothing for the baseline itself."""
    empty: Facts = {"difference": None, "low": None, "high": None}
    if not values or variant.name == comparison.baseline or comparison.baseline not in best:
        return empty
    theirs = [value for value in _values(comparison, best[comparison.baseline][1]) if value is not None]
    found = intervals.paired(values, theirs)
    return {"difference": found.mean, "low": found.low, "high": found.high}


def _cost(jobs: Sequence[Job]) -> Facts:
    """Medians and peaks over the steps of all seeds; seconds of the steps of one run, in the mean."""
    speeds, memory, seconds = [], [], []
    for job in jobs:
        steps = of_kind(read_metrics(job.folder / "metrics.jsonl")[0], "step")
        speeds += values(steps, "tokens_per_second")
        memory += values(steps, "memory_gb")
        seconds.append(sum(values(steps, "seconds")))
    together = max((job.record.get("jobs", 1) for job in jobs), default=None)
    return {
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "memory_gb": max(memory, default=None),
        "seconds": intervals.mean(seconds) if seconds else None,
        "side_by_side": together,
    }


def _forgotten(jobs: Sequence[Job]) -> Facts:
    """Loss on general text before and after, means over seeds; None where some seed was not asked."""
    found = [queries.answer(job, "forgetting") or {} for job in jobs]
    whole = bool(found) and all("after" in one for one in found)
    return {
        "general_before": intervals.mean([one["before"] for one in found]) if whole else None,
        "general_after": intervals.mean([one["after"] for one in found]) if whole else None,
    }


def _merge_words(merged: Facts, job: Job | None) -> str | None:
    if job is None:
        return None
    if "relative" in merged:
        return "holds"
    return queries.said_of(job, "merge") or None


def _point(comparison: Comparison, variant: Variant, point: Point, jobs: list[Job]) -> Facts:
    values = _values(comparison, jobs)
    known = [value for value in values if value is not None]
    return {
        "run": variant.name,
        "point": point.plain(),
        "values": {str(job.seed): value for job, value in zip(jobs, values, strict=True)},
        "mean": intervals.mean(known) if known and len(known) == len(values) else None,
        "spread": intervals.spread(known) if known and len(known) == len(values) else None,
        "states": {str(job.seed): job.state for job in jobs},
    }


def _warnings(comparison: Comparison, best: dict[str, tuple[Point, list[Job]]], rows: Sequence[Facts]) -> list[str]:
    said = []
    for variant, row in zip(comparison.variants, rows, strict=True):
        if variant.name in best:
            said += _edges(variant, best[variant.name][0])
        else:
            said.append(f"{variant.name}: no grid point has finished for all seeds yet; left out of the table")
        if comparison.budget == "parameters" and abs(row["deviation"]) > FAR:
            more = "more" if row["deviation"] > 0 else "fewer"
            text = (
                f"{variant.name} has {abs(row['deviation']):.0%} {more} trainable parameters than {comparison.baseline}"
            )
            said.append(text if row["rank_matters"] else f"{text}: its count {row['rank_note']}")
    if not any("training.learning_rate" in point.values for variant in comparison.variants for point in variant.points):
        said.append(
            "the learning rate is not in the grid: differences may be due to the learning rate rather than the method"
        )
    if len(comparison.seeds) == 1:
        said.append("only one seed: no confidence interval, so differences may be chance")
    if comparison.baseline not in best:
        said.append(f"{comparison.baseline}, the baseline, has no results yet, so no differences are shown")
    return [*worse_than_their_base(best), *undecided(rows, comparison.baseline), *said]


def _edges(variant: Variant, best: Point) -> list[str]:
    """A best value at the end of its list: a better one may lie beyond."""
    said = []
    for key, value in best.plain().items():
        tried = {point.plain()[key] for point in variant.points if _is_number(point.plain()[key])}
        if _is_number(value) and len(tried) > 1 and value in (min(tried), max(tried)):
            beyond, end = ("higher", "highest") if value == max(tried) else ("lower", "lowest")
            said.append(
                f"{variant.name}: the best {key}, {shown(value)}, is the {end} value tried: a {beyond} one may be "
                "better still"
            )
    return said


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def measured_on(jobs: Sequence[Job]) -> dict[str, list[int]]:
    """The smallest and the largest number of validation "rows" and of "tokens" that count, over the runs that are
    ranked; nothing for what no run recorded."""
    rows, tokens = [], []
    for job in jobs:
        evals = of_kind(read_metrics(job.folder / "metrics.jsonl")[0], "eval")
        tokens += [record["tokens"] for record in evals[-1:] if "tokens" in record]
        rows += [data["validation_rows"]] if "validation_rows" in (data := job.facts.get("data", {})) else []
    return {name: [min(found), max(found)] for name, found in (("rows", rows), ("tokens", tokens)) if found}


def worse_than_their_base(best: dict[str, tuple[Point, list[Job]]]) -> list[str]:
    """A warning for each run that is ranked with a state that is no better than no training at all."""
    verdicts = [(job.label, worse_than_base(job.facts.get("result", {}))) for _, jobs in best.values() for job in jobs]
    return [f"{label} is {worse}: its last state is ranked" for label, worse in verdicts if worse]


def undecided(rows: Sequence[Facts], baseline: str) -> list[str]:
    """The runs whose interval does not tell them from the baseline, in one warning."""
    names = [row["run"] for row in rows if row["low"] is not None and row["low"] <= 0 <= row["high"]]
    if not names:
        return []
    return [
        f"{', '.join(names)}: the interval of the difference to {baseline} holds 0, so this comparison cannot tell "
        "them apart; more seeds or more validation rows narrow it"
    ]


def unmeasured(comparison: Comparison, jobs: Sequence[Job]) -> list[str]:
    """The finished runs that have no such metric, as a classifier of numbers has no accuracy."""
    finished = [job for job in jobs if job.state == "finished"]
    return [
        f"{job.label} has no {comparison.metric}: its evaluations have {', '.join(queries.figures_of(job)) or 'none'}"
        for job, value in zip(finished, _values(comparison, finished), strict=True)
        if value is None and not queries.said_of(job, "evaluation")
    ]


def _questions(jobs: Sequence[Job]) -> list[str]:
    """What commands that were asked about finished runs have failed at."""
    asked = [(job, name) for job in jobs for name in ("evaluation", "forgetting")]
    return [f"{name} of {job.label} failed, {said}" for job, name in asked if (said := queries.said_of(job, name))]

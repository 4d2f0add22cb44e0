"""What a search has found, as JSON values: what was tried, the best, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lrft.compare import queries
from lrft.recipe.edit import with_values
from lrft.tuning.candidates import Candidate, beyond
from lrft.tuning.search import Search, best_of, neighbours, rates_of
from lrft.utils import files
from lrft.utils.text import count, decimals


def facts_of(search: Search, recipe: Path) -> dict[str, Any]:
    """Everything that the page says."""
    best, steps = best_of(search)
    beside = [neighbour(search, best, other, n) for other, n in neighbours(search)]
    job = search.job(best, steps)
    rows = (job.facts.get("data") or {}).get("validation_rows")
    edge = beyond(rates_of(search, best), best.rate)
    return {
        "recipe": str(recipe),
        "full_steps": search.full,
        "budget_seconds": search.asked.budget,
        "seconds": round(search.seconds, 1),
        "rungs": [{"steps": rung.steps, "candidates": rung.candidates} for rung in search.rungs],
        "tried": [line(search, candidate, n) for n, candidate in search.tried],
        "best": {**best.values, "steps": steps, "loss": search.loss(best, steps), "run": str(job.folder)},
        "validation_rows": rows,
        "on_border": edge is not None,
        "neighbours": beside,
        "remarks": [*remarks(search, best, steps, edge, beside, rows), *search.remarks],
    }


def line(search: Search, candidate: Candidate, steps: int) -> dict[str, Any]:
    """One run. loss: None where it has none."""
    job, loss = search.job(candidate, steps), search.loss(candidate, steps)
    return {
        "label": candidate.label,
        "rate": candidate.rate,
        "rank": candidate.rank,
        "method": candidate.method,
        "steps": steps,
        "loss": loss if math.isfinite(loss) else None,
        "state": job.state,
        "said": "" if job.state == "finished" else str(job.record.get("said", "")).split(". ")[0],
        "run": str(job.folder),
    }


def neighbour(search: Search, best: Candidate, other: Candidate, steps: int) -> dict[str, Any]:
    """How the best compares with the next rate: the loss of the best minus its loss, after the same steps."""
    job, their = search.job(best, steps), search.job(other, steps)
    found = queries.answer(job, f"against {their.folder}")
    said = queries.said_of(job, f"against {their.folder}")
    return {"rate": other.rate, "steps": steps, **(found["loss"] if found else {}), "failed": said}


def remarks(
    search: Search, best: Candidate, steps: int, edge: float | None, beside: list[dict[str, Any]], rows: int | None
) -> Iterator[str]:
    """Sentences that a reader must not miss."""
    if steps < search.full:
        yield (
            f"the runs compared last had {count(steps, 'step')}, the recipe has {search.full:,}: "
            "a longer run may want a lower rate"
        )
    if edge is not None:
        yield f"{best.rate:g} lies on the border of what was tried: a better rate may lie beyond it"
    told = [one for one in beside if one.get("low") is not None]
    for one in told:
        interval = f"{one['difference']:+.4f} ({one['low']:+.4f} to {one['high']:+.4f})"
        apart = "told apart" if one["tells_apart"] else "not told apart"
        after = "" if one["steps"] == steps else f" after {count(one['steps'], 'step')}"
        yield f"{best.rate:g} and {one['rate']:g}{after} are {apart} by these rows: difference {interval}, 95 %"
    yield from (f"{best.rate:g} and {one['rate']:g} could not be compared: {one['failed']}" for one in beside
                if one["failed"])  # fmt: skip
    if not beside:
        yield "no neighbour ended well: nothing says how much the rate matters"
    judged = "its validation rows" if rows is None else count(rows, "validation row")
    yield f"judged by the loss on {judged}, with one seed: another seed may choose a neighbour"
    failed = [one for one in search.tried.values() if one.state == "failed"]
    if failed:
        yield f"{count(len(failed), 'run')} failed; the same command tries them again"


def tuned_name(recipe: Path) -> Path:
    """Beside the recipe, whose relative paths still hold there."""
    return recipe.with_name(f"{recipe.stem}-tuned{recipe.suffix}")


def write_recipe(search: Search, recipe: Path, out: Path) -> None:
    """The user's own file with the best values. Raises UsageError where they cannot be written into it."""
    best, _ = best_of(search)
    text = recipe.read_text(encoding="utf-8-sig")
    files.write_text(out, with_values(text, best.values))


def words(facts: dict[str, Any]) -> list[str]:
    """The lines of the screen about the best."""
    best = facts["best"]
    values = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in best.items()
              if "." in key]  # fmt: skip
    return [*values, f"loss {decimals(best['loss'], 4)} after {count(best['steps'], 'step')}"]

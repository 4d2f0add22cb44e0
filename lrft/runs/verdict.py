"""Whether a run came out better than the untouched base, from the "result" that its run.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BY_METRIC = "best by another metric than the loss"
STARTED_FROM = "started from"  # the adapter of adapter.start_from, in the place of the untouched base
START, BEST, LAST = "validation loss at the start", "best validation loss", "last validation loss"


def worse_than_base(result: Mapping[str, Any]) -> str:
    """Why no trained state of a run is known to be better than the untouched base; "" when one is, or nothing is known.

    result: with the losses that were measured, None for those that were not. A run of an earlier version has no
    LAST, and its BEST leaves the start out.
    """
    if result.get(BY_METRIC):
        return "" if result.get("best step") else f"no better than {origin(result)} by the metric of evaluation.best"
    start, best = result.get(START), result.get(BEST)
    last = result.get(LAST, best)
    if start is None or best is None or last is None or best < start:
        return ""
    worse = "worse than" if last > start else "no better than"
    return f"{worse} {origin(result)}: validation loss {last:.4f} at the end, {start:.4f} before the first step"


def worse_at_the_end(result: Mapping[str, Any]) -> str:
    """A warning for a run whose best state is better than the base and whose last one is worse; "" for all others."""
    start, best, last = result.get(START), result.get(BEST), result.get(LAST)
    if start is None or best is None or last is None or last <= start or not best < start:
        return ""
    return (
        f"the last state is worse than {origin(result)} (validation loss {last:.4f}, {start:.4f} before the first "
        f"step); best/ is the state of step {result.get('best step'):,}"
    )


def origin(result: Mapping[str, Any]) -> str:
    """What the run began as."""
    return f"{result[STARTED_FROM]}, which it started from" if result.get(STARTED_FROM) else "the untouched base"

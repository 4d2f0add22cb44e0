"""The page of a search: loss over learning rate, every run, and what the best is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrft.report.html_elements import Html, beside, bullets, element, page, wide_table
from lrft.report.svg_charts import Line, chart
from lrft.utils.text import count, decimals, duration

Facts = Mapping[str, Any]
NOTHING = "–"
HEAD = ["run", "steps", "loss", "state"]


def render(facts: Facts) -> Html:
    """One HTML file."""
    title = f"Learning rate of {facts['recipe']}"
    best = facts["best"]
    return page(
        title,
        element("h1", title),
        element("p", f"Chosen: {chosen(facts)}, loss {decimals(best['loss'], 4)}. Run: {best['run']}"),
        bullets(facts["remarks"]),
        element("h2", "Loss over the learning rate"),
        element(
            "p",
            "Validation loss of each run's best state. The rate's axis is logarithmic. The chosen run has a ring. "
            "Runs of few steps compare less surely than those of many. Runs without a loss are in the table alone.",
            class_="dim",
        ),
        beside(*charts(facts)),
        element("h2", "All runs"),
        element("p", spent(facts)),
        wide_table(HEAD, [line(one) for one in ordered(facts)]),
    )


def chosen(facts: Facts) -> str:
    """`learning_rate 0.001, rank 8`."""
    values = [(key.rsplit(".", 1)[-1], value) for key, value in facts["best"].items() if "." in key]
    return ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in values)


def spent(facts: Facts) -> str:
    rungs = ", ".join(f"{count(one['candidates'], 'run')} of {count(one['steps'], 'step')}" for one in facts["rungs"])
    budget = f" of {duration(facts['budget_seconds'])} stated" if facts["budget_seconds"] else ""
    return f"Planned: {rungs}. Time of all runs together: {duration(facts['seconds'])}{budget}."


def charts(facts: Facts) -> Iterator[Html]:
    """A chart for each rank and method, with a line for each number of steps; the chosen one has a ring."""
    best = facts["best"]
    known = [one for one in facts["tried"] if one["loss"] is not None]
    mine = best.get("adapter.method"), best.get("adapter.rank")
    for group in dict.fromkeys((one["method"], one["rank"]) for one in known):
        those = [one for one in known if (one["method"], one["rank"]) == group]
        steps = sorted({one["steps"] for one in those})
        lines = [
            Line(f"after {count(n, 'step')}", points([one for one in those if one["steps"] == n]), at, dotted=True)
            for at, n in enumerate(steps)
        ]
        if group == mine:
            at = (best["training.learning_rate"], best["loss"])
            lines.append(Line(f"chosen: {chosen(facts)}", [at], steps.index(best["steps"]), ringed=True))
        yield chart(group_name(group), lines, across="learning rate", log=True, capped=True)


def group_name(group: tuple[str | None, int | None]) -> str:
    method, rank = group
    return ", ".join(filter(None, (method, f"rank {rank}" if rank is not None else ""))) or "Validation loss"


def points(those: Sequence[Facts]) -> list[tuple[float, float]]:
    return sorted((one["rate"], one["loss"]) for one in those)


def ordered(facts: Facts) -> list[Facts]:
    """The longest runs first, by rising loss; runs without one last."""
    return sorted(facts["tried"], key=lambda one: (-one["steps"], one["loss"] is None, one["loss"] or 0.0))


def line(one: Facts) -> list[str]:
    state = one["state"] + (f": {one['said']}" if one["said"] else "")
    return [one["label"], f"{one['steps']:,}", NOTHING if one["loss"] is None else decimals(one["loss"], 4), state]

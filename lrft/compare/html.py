"""compare.html: the tables of a comparison, and charts of what each run costs, how it was searched and how it went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrft.compare import intervals
from lrft.compare.columns import Facts, failed_table, grid_table, main_table, measured_words, notes
from lrft.report.html_elements import Html, beside, bullets, element, page, table, wide_table
from lrft.report.loss_plot import points, smooth
from lrft.report.svg_charts import Line, Point, Spot, chart, key, scatter
from lrft.runs.metrics import of_kind, read_metrics

COSTS: tuple[tuple[str, Callable[[Facts], float | None]], ...] = (
    ("seconds for 1,000 tokens", lambda row: 1e3 / row["tokens_per_second"] if row["tokens_per_second"] else None),
    ("memory, GB", lambda row: row["memory_gb"]),
    ("trainable parameters, thousands", lambda row: row["trained"] / 1e3),
)
LOG_FROM = 3  # the largest over the smallest number of an axis, from which on it is logarithmic
RATES = ("learning_rate", "lr", "weight_decay")  # keys of the grid that are logarithmic whatever their range


def render(found: Facts) -> Html:
    """The whole page. A run has the same colour in every chart."""
    title = f"Comparison by {found['metric']}"
    runs = ", ".join(f"{count} {state}" for state, count in found["runs"].items())
    lines = [Line(row["run"], (), n) for n, row in enumerate(found["methods"])]
    return page(
        title,
        element("h1", title),
        element(
            "p",
            f"{found['comparison']}: runs {runs}; budget {found['budget']}, baseline {found['baseline']}",
            class_="dim",
        ),
        *([element("p", measured)] if (measured := measured_words(found)) else []),
        wide_table(*main_table(found)),
        *([bullets(found["warnings"], class_="bad")] if found["warnings"] else []),
        element("h2", "Quality and cost"),
        element(
            "p",
            "Each run at its best grid point. The circled, connected points are the Pareto front.",
            class_="dim",
        ),
        beside(*cost_charts(found)),
        element("h2", "Grid search and learning curves"),
        element("p", key(lines), class_="dim"),
        beside(*grid_charts(found), *curve_charts(found)),
        element("h2", "All grid points"),
        wide_table(*grid_table(found)),
        *([element("h2", "Runs that failed"), table(*failed_table(found))] if found["failed"] else []),
        element("h2", "What the columns mean"),
        *(element("p", note, class_="dim") for note in notes(found)),
    )


def cost_charts(found: Facts) -> list[Html]:
    """The metric against each cost, with the Pareto front of the two."""
    sign = 1 if found["better"] == "lower" else -1
    made = []
    for name, cost in COSTS:
        spots = [
            Spot(row["run"], (known, row["mean"]), n)
            for n, row in enumerate(found["methods"])
            if row["mean"] is not None and (known := cost(row)) is not None
        ]
        front = intervals.pareto([(x, sign * y) for x, y in (spot.at for spot in spots)])
        made.append(scatter(f"{found['metric']} against {name}", spots, front, across=name))
    return made


def grid_charts(found: Facts) -> list[Html]:
    """The metric over each number that the grid crosses, at the best values of the other keys."""
    best = {row["run"]: row["best"] for row in found["methods"]}
    made = []
    for name in dict.fromkeys(one for point in found["grid"] for one in point["point"]):
        lines = [
            Line(run, search(found, run, point, name), n, dotted=True) for n, (run, point) in enumerate(best.items())
        ]
        values = {x for line in lines for x, _ in line.points}
        if len(values) > 1:
            ratio = name.rsplit(".", 1)[-1] in RATES
            log = min(values) > 0 and (ratio or max(values) / min(values) >= LOG_FROM)
            title = f"{found['metric']} by {name.rsplit('.', 1)[-1]}"
            made.append(chart(title, lines, across=name, log=log, capped=True, keyed=False))
    return made


def search(found: Facts, run: str, best: dict[str, Any] | None, name: str) -> list[Point]:
    """(value, mean) of one run over the numbers of one key, by rising value."""
    others = [
        point
        for point in found["grid"]
        if best and point["run"] == run and all(point["point"][k] == best[k] for k in best if k != name)
    ]
    return sorted(
        (value, point["mean"])
        for point in others
        if point["mean"] is not None and is_number(value := point["point"].get(name))
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_charts(found: Facts) -> list[Html]:
    """Losses over the steps at each run's best point, the mean over its seeds."""
    kinds = (("step", "training loss, smoothed, nats per token"), ("eval", "validation loss, nats per token"))
    made = []
    for kind, title in kinds:
        lines = [
            Line(row["run"], curve(row["folders"], kind), n, dotted=kind == "eval")
            for n, row in enumerate(found["methods"])
        ]
        made.append(chart(title, lines, across="optimiser step", capped=True, keyed=False))
    return made


def curve(folders: Sequence[str], kind: str) -> list[Point]:
    """(step, loss) at the steps that all runs have recorded; training losses are smoothed run by run."""
    runs = []
    for folder in folders:
        records, _ = read_metrics(Path(folder) / "metrics.jsonl")
        found = dict(points(of_kind(records, kind), "loss"))
        losses = smooth(list(found.values())) if kind == "step" else found.values()
        runs.append(dict(zip(found, losses, strict=True)))
    shared = [step for step in runs[0] if all(step in run for run in runs)] if runs else []
    return [(step, intervals.mean([run[step] for run in runs])) for step in shared]

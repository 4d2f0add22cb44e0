"""compare.html: one file with tables and charts that needs nothing else, on light and dark, wide and narrow screens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from lrft.compare import intervals, svg
from lrft.compare.columns import Facts, columns, grid_cells, notes
from lrft.compare.svg import Series
from lrft.figures import HUGE, smooth
from lrft.metrics import read_metrics

MOST_POINTS = 300
"""of one curve"""
COSTS: tuple[tuple[str, str, Callable[[Facts], float | None]], ...] = (
    (
        "seconds for 1,000 tokens",
        ".3g",
        lambda row: 1e3 / row["tokens_per_second"] if row["tokens_per_second"] else None,
    ),
    ("memory, GB", ".2f", lambda row: row["memory_gb"]),
    ("trained numbers, thousands", ",.1f", lambda row: row["trained"] / 1e3),
)

LIGHT = ("#2a6fb0", "#c8641a", "#2f8f5b", "#8a56b8", "#b02a2a", "#0f7f8d", "#a0761d", "#5b6470")
DARK = ("#6fb1ee", "#f0a15c", "#6fcf97", "#c39bea", "#f08585", "#5fcbd8", "#dcb765", "#aab4c0")

STYLE = """\
:root { color-scheme: light dark; --ink: #20242a; --soft: #5f6772; --grid: #e4e7eb; --ground: #ffffff;
  --raised: #f5f7f9; --warn: #8a4b00; PALETTE_LIGHT }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b0; --grid: #323942; --ground: #14171b;
  --raised: #1d2228; --warn: #f2b366; PALETTE_DARK } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 78rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; margin: 0 0 .25rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem }
p, li { max-width: 70ch } .soft { color: var(--soft); font-size: .92rem }
.warnings { color: var(--warn); padding-left: 1.2rem }
.wide { overflow-x: auto; border: 1px solid var(--grid); border-radius: 8px }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .45rem .7rem; border-bottom: 1px solid var(--grid); white-space: nowrap }
tbody th, thead th:first-child { position: sticky; left: 0; background: var(--raised) }
thead th { background: var(--raised); font-weight: 600 } tr:last-child > * { border-bottom: 0 }
.said { white-space: normal; min-width: 16rem }
.charts { display: grid; gap: 1.2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)) }
figure { margin: 0; padding: .8rem; background: var(--raised); border-radius: 8px; min-width: 0 }
figcaption { font-weight: 600; margin-bottom: .3rem }
svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif } svg .name { fill: var(--ink) }
.grid { stroke: var(--grid); stroke-width: 1 } .line { fill: none; stroke-width: 2 }
.dashed.line { stroke-dasharray: 6 4 } .front { fill: none; stroke: var(--soft); stroke-dasharray: 3 4 }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.5 }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; list-style: none; padding: 0; margin: .2rem 0 1rem }
.legend svg { display: inline-block; width: 1.6rem; height: .7rem; margin-right: .4rem }
@media (max-width: 40rem) { svg text { font-size: 17px } body { padding: 1rem .7rem 3rem } }
@media print { body { max-width: none } .wide { overflow: visible } }
"""


def style() -> str:
    def palette(colours: Sequence[str]) -> str:
        return " ".join(f"--c{n}: {colour};" for n, colour in enumerate(colours))

    classes = [f".line.c{n} {{ stroke: var(--c{n}) }} .dot.c{n} {{ fill: var(--c{n}) }}" for n in range(svg.COLOURS)]
    filled = STYLE.replace("PALETTE_LIGHT", palette(LIGHT)).replace("PALETTE_DARK", palette(DARK))
    return filled + "\n".join(classes)


def page(found: Facts) -> str:
    """The whole page."""
    title = f"Comparison by {found['metric']}"
    shape = columns(found)
    rows = [[text(row) for _, text in shape] for row in found["methods"]]
    runs = ", ".join(f"{count} {state}" for state, count in found["runs"].items())
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(found["comparison"])}: runs {escape(runs)}; budget {escape(found["budget"])}, '
        f"baseline {escape(found['baseline'])}</p>",
        table([name for name, _ in shape], rows),
        warnings(found["warnings"]),
        "<h2>Quality and cost</h2>",
        '<p class="soft">Each run at its best point. Ringed and joined: the Pareto front, runs that no other one beats '
        "in both.</p>",
        figures(cost_charts(found)),
        "<h2>Search and course</h2>",
        legend([row["run"] for row in found["methods"]]),
        figures([*grid_charts(found), *curve_charts(found)]),
        "<h2>Every point of the grid</h2>",
        grid_table(found),
        failed_table(found),
        "<h2>What the columns mean</h2>",
        *(f'<p class="soft">{escape(note)}</p>' for note in notes(found)),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style()}\n</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], said: int = -1) -> str:
    """A table that scrolls by itself on a narrow screen. said: the column whose text wraps."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = []
    for first, *rest in rows:
        cells = [
            f"<td{' class=said' if at == said else ''}>{escape(cell)}</td>" for at, cell in enumerate(rest, start=1)
        ]
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{"".join(cells)}</tr>')
    inside = "\n".join(lines)
    return f'<div class="wide"><table>\n<thead><tr>{top}</tr></thead>\n<tbody>\n{inside}\n</tbody>\n</table></div>'


def warnings(said: Sequence[str]) -> str:
    points = "\n".join(f"<li>{escape(one)}</li>" for one in said)
    return f'<ul class="warnings">\n{points}\n</ul>' if said else ""


def legend(names: Sequence[str]) -> str:
    items = []
    for n, name in enumerate(names):
        sample = f'<path class="line {Series(name, n, ()).style}" d="M0 5L32 5"/>'
        items.append(f'<li><svg viewBox="0 0 32 10" aria-hidden="true">{sample}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def figures(drawn: Sequence[tuple[str, str]]) -> str:
    shown = [f"<figure><figcaption>{escape(title)}</figcaption>\n{chart}</figure>" for title, chart in drawn if chart]
    inside = "\n".join(shown)
    return f'<div class="charts">\n{inside}\n</div>' if shown else ""


def cost_charts(found: Facts) -> list[tuple[str, str]]:
    """The metric against each cost, with the Pareto front of the two."""
    metric, sign = found["metric"], 1 if found["better"] == "lower" else -1
    made = []
    for name, form, cost in COSTS:
        points = [
            Series(row["run"], n, [(known, row["mean"])])
            for n, row in enumerate(found["methods"])
            if row["mean"] is not None and (known := cost(row)) is not None
        ]
        front = intervals.pareto([(x, sign * y) for one in points for x, y in one.points])
        title = f"{metric} against {name}"
        made.append((title, svg.scatter(title, points, front, name, metric, form)))
    return made


def grid_charts(found: Facts) -> list[tuple[str, str]]:
    """The metric over each number that the grid crosses, at the best values of the other keys."""
    best = {row["run"]: row["best"] for row in found["methods"]}
    keys = dict.fromkeys(key for point in found["grid"] for key in point["point"])
    made = []
    for key in keys:
        series = [Series(run, n, search(found, run, point, key)) for n, (run, point) in enumerate(best.items())]
        values = [x for one in series for x, _ in one.points]
        wide = bool(values) and min(values) > 0 and max(values) / min(values) >= 3
        title = f"{found['metric']} by {key.rsplit('.', 1)[-1]}"
        if len(set(values)) > 1:
            made.append((title, svg.lines(title, series, key, found["metric"], log_x=wide, marks=True)))
    return made


def search(found: Facts, run: str, best: dict[str, Any] | None, key: str) -> list[tuple[float, float]]:
    """(value, mean) of one run over the numbers of one key, by rising value."""
    others = [
        point
        for point in found["grid"]
        if best and point["run"] == run and all(point["point"][k] == best[k] for k in best if k != key)
    ]
    return sorted(
        (value, point["mean"])
        for point in others
        if point["mean"] is not None and is_number(value := point["point"].get(key))
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curve_charts(found: Facts) -> list[tuple[str, str]]:
    """Losses over the steps at each run's best point, the mean over its seeds."""
    kinds = (("step", "training loss, smoothed", False), ("eval", "validation loss", True))
    made = []
    for kind, title, marks in kinds:
        series = [Series(row["run"], n, curve(row["folders"], kind)) for n, row in enumerate(found["methods"])]
        made.append((title, svg.lines(title, series, "optimiser step", "nats per token", log_x=False, marks=marks)))
    return made


def curve(folders: Sequence[str], kind: str) -> list[tuple[float, float]]:
    """(step, loss) at the steps that all runs have recorded; training losses are smoothed run by run."""
    runs = []
    for folder in folders:
        records, _ = read_metrics(Path(folder) / "metrics.jsonl")
        found = {
            r["step"]: r["loss"]
            for r in records
            if r.get("kind") == kind and r.get("loss") is not None and abs(r["loss"]) < HUGE
        }
        losses = smooth(list(found.values())) if kind == "step" and found else list(found.values())
        runs.append(dict(zip(found, losses, strict=True)))
    shared = [step for step in runs[0] if all(step in run for run in runs)] if runs else []
    thin = shared[:: max(1, len(shared) // MOST_POINTS)]
    return [(step, intervals.mean([run[step] for run in runs])) for step in thin]


def grid_table(found: Facts) -> str:
    seeds = [str(seed) for seed in found["seeds"]]
    rows = [grid_cells(point, seeds) for point in found["grid"]]
    return table(["run", "point", "mean", *(f"seed {seed}" for seed in seeds)], rows)


def failed_table(found: Facts) -> str:
    rows = [[one["run"], str(one["exit"]), one["said"], one["log"]] for one in found["failed"]]
    head = ["run", "exit code", "last words", "log"]
    return "<h2>Runs that failed</h2>\n" + table(head, rows, said=2) if rows else ""

"""Tables of a comparison and explanations of their columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrft.compare.grid import shown

Facts = Mapping[str, Any]
Rows = tuple[list[str], list[list[str]]]
"""titles, lines"""
NOTHING = "–"


def number(value: float | None, form: str = ".4f") -> str:
    return NOTHING if value is None else format(value, form)


def interval(row: Facts) -> str:
    """`-0.0123 (-0.0200 to -0.0046)`."""
    if row["difference"] is None:
        return NOTHING
    difference = number(row["difference"], "+.4f")
    if row["low"] is None:
        return f"{difference} (no interval)"
    return f"{difference} ({row['low']:+.4f} to {row['high']:+.4f})"


def point_text(point: Mapping[str, Any] | None) -> str:
    if not point:
        return NOTHING
    return ", ".join(f"{key.rsplit('.', 1)[-1]} {shown(value)}" for key, value in point.items())


def mean_text(row: Facts) -> str:
    spread = f" ± {row['spread']:.4f}" if row["spread"] is not None else ""
    return number(row["mean"]) + spread


def merge_text(row: Facts) -> str:
    if row["merge_difference"] is not None:
        return f"{row['merge_check']}, {row['merge_difference']:.1e}"
    return row["merge_check"] or NOTHING


def general_text(row: Facts) -> str:
    if row["general_after"] is None:
        return NOTHING
    return f"{row['general_before']:.4f} → {row['general_after']:.4f}"


def columns(found: Facts) -> list[tuple[str, Callable[[Facts], str]]]:
    """(title, text of a row): the table for people."""
    arrow = "lower" if found["better"] == "lower" else "higher"
    made: list[tuple[str, Callable[[Facts], str]]] = [
        ("run", lambda row: row["run"]),
        ("trainable", lambda row: f"{row['trained']:,} ({row['deviation']:+.1%})"),
        ("rank", lambda row: f"{row['rank']}" + ("" if row["rank_matters"] else " (no effect)")),
        ("best at", lambda row: point_text(row["best"])),
        (f"{found['metric']} ({arrow} is better)", mean_text),
        (f"against {found['baseline']}, 95 %", interval),
        ("tokens/s", lambda row: number(row["tokens_per_second"], ",.0f")),
        ("memory, GB", lambda row: number(row["memory_gb"], ".2f")),
        ("training, s", lambda row: number(row["seconds"], ",.1f")),
        ("merged", merge_text),
        ("exports to", lambda row: row["exports_to"] or NOTHING),
    ]
    if any(row["general_after"] is not None for row in found["methods"]):
        made.insert(6, ("general text", general_text))
    return made


def measured_words(found: Facts) -> str:
    """`ranked by loss on 512 validation rows, 12,345 trained tokens`; "" when no run says so. Ranges where seeds
    differ."""
    words = [
        f"{low:,}{f' to {high:,}' if high > low else ''} {unit}"
        for name, unit in (("rows", "validation rows"), ("tokens", "trained tokens"))
        if name in found["measured_on"]
        for low, high in [found["measured_on"][name]]
    ]
    return f"ranked by {found['metric']} on {', '.join(words)}" if words else ""


def notes(found: Facts) -> list[str]:
    """What the columns mean."""
    metric, seeds = found["metric"], ", ".join(map(str, found["seeds"]))
    side = max((row["side_by_side"] or 1 for row in found["methods"]), default=1)
    made = [
        f"{metric}: best checkpoint of each run on its validation rows, or its last one where none beats the base; "
        f"mean over the seeds {seeds} ± the standard deviation (n - 1). Each run is shown at its best grid point, "
        "selected by this same mean, so figures from a wide grid are slightly optimistic.",
        f"The 95 % interval is paired over seeds: {found['interval']}",
        f"trainable: trainable parameters, and their difference from the baseline's{beside_words(found)}. exports to: "
        "formats the adapter can be exported to. merged: the largest logit difference of merged model and adapter over "
        "the largest logit, of the best seed.",
        "tokens/s: median over all steps. memory: maximum over all steps. training: training time of one run, "
        "mean over seeds" + (f"; up to {side} runs shared the machine, which slows each." if side > 1 else "."),
    ]
    if any(row["general_after"] is not None for row in found["methods"]):
        made.append("general text: loss per token before → after training, the mean over seeds; a rise is forgetting.")
    return made


def beside_words(found: Facts) -> str:
    """`; 1,234 of them stand beside the adapters in each run`; "" where nothing does."""
    counts = {row["run"]: row["beside"] for row in found["methods"]}
    if not any(counts.values()):
        return ""
    if len(set(counts.values())) == 1:
        return f"; {next(iter(counts.values())):,} of them stand beside the adapters, in each run"
    each = ", ".join(f"{number:,} in {run}" for run, number in counts.items())
    return f"; some of them stand beside the adapters: {each}"


def main_table(found: Facts) -> Rows:
    """A line for each run."""
    shape = columns(found)
    return [title for title, _ in shape], [[text(row) for _, text in shape] for row in found["methods"]]


def grid_table(found: Facts) -> Rows:
    """A line for each point of the grid: a seed that gave no figure is named by its state."""
    seeds = [str(seed) for seed in found["seeds"]]

    def figure(point: Facts, seed: str) -> str:
        return point["states"][seed] if point["values"][seed] is None else number(point["values"][seed])

    rows = [
        [point["run"], point_text(point["point"]), mean_text(point), *(figure(point, seed) for seed in seeds)]
        for point in found["grid"]
    ]
    return ["run", "point", "mean", *(f"seed {seed}" for seed in seeds)], rows


def failed_table(found: Facts) -> Rows:
    """A line for each run that failed."""
    rows = [[one["run"], str(one["exit"]), one["said"], one["log"]] for one in found["failed"]]
    return ["run", "exit code", "last words", "log"], rows

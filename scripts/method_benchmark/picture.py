"""The picture of the benchmark: how far a loss lies from LoRA's, by method and task; the mean, a line over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

INK = "#7a7a7a"  # in between: legible on white and on black
COLOURS, MARKS = ("#d9792b", "#4d87b8", "#5a9e5a"), ("o", "s", "^")
EDGE = 0.6
"""nats; what lies further is drawn at the edge"""


def within(change: float) -> float:
    return min(max(change, -EDGE), EDGE)


def draw(changes: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """changes: loss - LoRA's of each seed, by method and task, in the order of the rows."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "lrft", "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({**style, "axes.edgecolor": INK, "font.size": 8}):
        figure, axes = plt.subplots(figsize=(8, 1.2 + 0.17 * len(changes)), layout="constrained")
        tasks = list(next(iter(changes.values())))
        for task, colour, mark in zip(tasks, COLOURS, MARKS, strict=False):
            places = range(len(changes))
            shown, low, high = (
                [within(of(those[task])) for those in changes.values()] for of in (statistics.fmean, min, max)
            )
            axes.hlines(places, low, high, color=colour, linewidth=1, alpha=0.5)
            axes.scatter(shown, places, s=16, color=colour, marker=mark, label=task, alpha=0.85)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(changes)), list(changes))
        axes.invert_yaxis()
        axes.grid(axis="y", color=INK, alpha=0.2, linewidth=0.5)
        axes.set_xlim(-EDGE * 1.04, EDGE * 1.04)
        axes.set_xlabel(
            f"validation loss less LoRA's, nats for each token (from {EDGE} on at the edge); left is better"
        )
        axes.legend(loc="lower left", frameon=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0)
        axes.margins(y=0.01)
        axes.patch.set_alpha(0)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)

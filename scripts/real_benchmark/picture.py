"""The picture: the test loss of each method less LoRA's against the time of its steps over LoRA's, by task."""

from __future__ import annotations

from pathlib import Path

from method_benchmark.picture import INK

from lrft.compare.intervals import mean
from real_benchmark import results
from real_benchmark.design import BASELINE, Tier

COLOURS, MARKS = ("#d9792b", "#4d87b8", "#5a9e5a", "#a05aa0", "#b0a030"), ("o", "s", "^", "D", "v")


def points(tier: Tier) -> dict[str, list[tuple[str, float, float]]]:
    """(method, time over the baseline's, test loss less the baseline's) by task."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for task, facts in results.finals(tier).items():
        losses = results.figures(facts, "loss")
        speeds = {row["run"]: row["tokens_per_second"] for row in facts["methods"]}
        found[task] = [
            (run, speeds[BASELINE] / speeds[run], mean(those) - mean(losses[BASELINE])) for run, those in losses.items()
        ]
    return found


def draw(tier: Tier, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "lrft", "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({**style, "axes.edgecolor": INK, "font.size": 8}):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        for (task, those), colour, mark in zip(points(tier).items(), COLOURS, MARKS, strict=False):
            times, apart = [x for _, x, _ in those], [y for _, _, y in those]
            axes.scatter(times, apart, s=20, color=colour, marker=mark, label=task, alpha=0.85)
            for run, x, y in those:
                axes.annotate(run, (x, y), xytext=(4, 2), textcoords="offset points", fontsize=6)
        axes.axhline(0, color=INK, linewidth=1)
        axes.axvline(1, color=INK, linewidth=0.5)
        axes.set_xlabel(f"time of the training steps over {BASELINE}'s")
        axes.set_ylabel(f"test loss less {BASELINE}'s; lower is better")
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.patch.set_alpha(0)
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)

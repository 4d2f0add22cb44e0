"""The picture of the step tables: tokens a second and memory, one bar for each contestant; readable on any ground."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from performance import rounds

INK = "#7a7a7a"  # in between: legible on white and on black
COLOURS = {"limit": "#9a9a9a", "lrft": "#d9792b", "": "#4d87b8"}


def draw(sections: list[dict[str, Any]], path: Path) -> None:
    """One row of two panels for each measured model."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    style = {"svg.hashsalt": "lrft", "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with mpl.rc_context({**style, "axes.edgecolor": INK, "font.size": 9}):
        bars = max(len(order(section)) for section in sections)
        figure, panels = plt.subplots(
            len(sections), 2, figsize=(9, len(sections) * (0.9 + 0.27 * bars)), squeeze=False, layout="constrained"
        )
        for section, (left, right) in zip(sections, panels, strict=True):
            panel(left, section, "tokens a second", speed)
            panel(right, section, "peak memory above the model, MB", memory)
            right.set_yticklabels([])
        figure.savefig(path, transparent=True, metadata={"Date": None})
        plt.close(figure)


def order(section: dict[str, Any]) -> list[str]:
    return rounds.names(section["runs"], [entry["name"] for entry in section["contestants"]])


def panel(axes: Any, section: dict[str, Any], title: str, values: Any) -> None:
    """Horizontal bars of medians, with the spread as a thin line and the number at the end."""
    names = order(section)
    found = [values(section, name) for name in names]
    middles = [median(some) for some in found]
    colours = [COLOURS.get(name.partition(",")[0], COLOURS[""]) for name in names]
    axes.barh(names, middles, color=colours, height=0.7)
    for place, (some, middle) in enumerate(zip(found, middles, strict=True)):
        axes.plot([min(some), max(some)], [place, place], color=INK, linewidth=1)
        axes.annotate(f"{middle:,.0f}", (max(some), place), (4, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_title(f"{section['model']}: {title}", fontsize=10, loc="left", color=INK)
    axes.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.patch.set_alpha(0)


def speed(section: dict[str, Any], name: str) -> list[float]:
    return [section["shape"]["tokens"] / wall for wall in rounds.counted(section["runs"], name, "wall")]


def memory(section: dict[str, Any], name: str) -> list[float]:
    return rounds.of_runs(section["runs"], name, lambda run: run["peak_mb"])

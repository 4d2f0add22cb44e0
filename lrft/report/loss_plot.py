"""loss.png: losses over the steps, with the learning rate below."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lrft.runs.metrics import of_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[int, float]

INCHES = (10.0, 6.0)
DOTS_PER_INCH = 100
HUGE = 1e30  # larger values count as not finite: the axis could not be drawn
INK, GRID = "#333333", "#e6e6e6"
TRAIN, VALIDATION, RATE, BAD = "#2a6fb0", "#d1701a", "#5a8f5a", "#b02a2a"
FOOT, HEAD = 0.025, 0.975  # heights in the panel of the marks for losses that it cannot show


def loss_picture(records: Sequence[dict[str, Any]]) -> bytes:
    """A PNG of 1000 x 600 pixels from the records of metrics.jsonl.

    Losses that are missing or not finite are marked at the foot of the panel, those far above it at its head.
    """
    steps, evals = of_kind(records, "step"), of_kind(records, "eval")

    def draw(figure: Figure) -> None:
        losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3.5, 1])
        _draw_losses(losses, steps, evals)
        _draw_rates(rates, steps)
        places = [record["step"] for record in records] or [0]
        margin = max(0.02 * (max(places) - min(places)), 0.6)  # wide enough for a whole number on the axis
        rates.set_xlim(min(places) - margin, max(places) + margin)

    return png(INCHES, draw)


def png(inches: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """What `draw` puts on an empty figure, as a PNG of 100 pixels to the inch."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 11, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK}):
        # Agg without pyplot: no window system, no global state
        figure = Figure(figsize=inches, dpi=DOTS_PER_INCH, layout="constrained", facecolor="white")
        draw(figure)
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
    return picture.getvalue()


def smooth(values: Sequence[float]) -> list[float]:
    """Centred moving mean over about a twentieth of the run, less at both ends."""
    reach = max(len(values) // 40, 1)
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return [math.fsum(window) / len(window) for window in windows]


def ceiling(values: Sequence[float]) -> float:
    """The largest of `values` that belongs to the bulk: a spike must not flatten the curve beside it."""
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return max(value for value in ordered if value <= high + 5 * (high - low))


def top_of(train: Sequence[Point], validation: Sequence[Point]) -> float:
    """The largest loss to show: of the bulk of the training losses, and of all validation losses."""
    return max([ceiling([loss for _, loss in train]), *(loss for _, loss in validation)])


def points(records: Sequence[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of the records that have a value under `key` which can be drawn."""
    pairs = [(record["step"], record.get(key)) for record in records]
    return [(step, value) for step, value in pairs if value is not None and abs(value) < HUGE]


def _draw_losses(axes: Axes, steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> None:
    train, validation = points(steps, "loss"), points(evals, "loss")
    if train:
        _draw_training(axes, train, top_of(train, validation))
    if validation:
        axes.plot(*zip(*validation, strict=True), "o-", color=VALIDATION, linewidth=1.2, label="validation")
        _mark_best(axes, evals)
    bad = [record["step"] for record in [*steps, *evals] if not points([record], "loss")]
    if bad:
        _mark(axes, bad, FOOT, "x", "loss is not finite")
    dress(axes, "loss (nats per token)")
    if train or validation or bad:
        axes.legend(frameon=False)
    if not train and not validation:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no finite loss was recorded", ha="center", transform=axes.transAxes)


def _draw_training(axes: Axes, train: Sequence[Point], top: float) -> None:
    """The losses as they are, and smoothed when there are enough. `top`: the largest loss that is shown."""
    x, y = [step for step, _ in train], [loss for _, loss in train]
    many = len(train) > 2
    axes.plot(x, y, "-" if many else "o", color=TRAIN, alpha=0.35 if many else 1, lw=1, label="training")
    if many:
        smoothed = smooth([min(loss, top) for loss in y])
        axes.plot(x, smoothed, color=TRAIN, linewidth=2.2, label="training, smoothed")
    above = [step for step, loss in train if loss > top]
    if above:
        low = min(y)
        axes.set_ylim(low - 0.06 * (top - low), top + 0.1 * (top - low))
        _mark(axes, above, HEAD, "^", f"training loss above this panel, up to {max(y):.3g}")


def _mark_best(axes: Axes, evals: Sequence[dict[str, Any]]) -> None:
    best = points([record for record in evals if record.get("best")], "loss")
    if best:
        step, loss = best[-1]
        star: dict[str, Any] = {"markersize": 17, "markeredgecolor": "white"}
        axes.plot([step], [loss], "*", color=VALIDATION, label=f"best: {loss:.4f} at step {step:,}", **star)


def _mark(axes: Axes, steps: Sequence[int], height: float, sign: str, label: str) -> None:
    """Marks at a height of the panel (0 to 1), whatever its scale."""
    heights = [height] * len(steps)
    axes.plot(steps, heights, sign, color=BAD, transform=axes.get_xaxis_transform(), label=label)


def _draw_rates(axes: Axes, steps: Sequence[dict[str, Any]]) -> None:
    rates = points(steps, "lr")
    if rates:
        axes.plot(*zip(*rates, strict=True), color=RATE, linewidth=1.6, marker="" if len(rates) > 2 else "o")
        axes.set_ylim(0, 1.15 * max(rate for _, rate in rates) or 1)
    dress(axes, "learning rate")
    axes.locator_params(axis="y", nbins=3)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("optimiser step")


def dress(axes: Axes, label: str) -> None:
    """The look of every panel; its vertical axis is called `label`."""
    axes.set_ylabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(color=INK, labelcolor=INK)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)

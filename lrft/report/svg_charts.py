"""Charts for a page, in SVG: lines over x, points with their Pareto front, histograms.

    chart("Loss", [Line("run", [(1, 2.0), (2, 1.5)])])

Colours are classes that the page's style fills in. Every value is finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lrft.report.html_elements import COLOURS, Html, element, figure, together
from lrft.report.loss_plot import ceiling

POINTS_DRAWN = 600  # of one line: more cannot be told apart
WIDTH, HEIGHT = 460, 250  # of a chart, in its own units
LEFT, RIGHT, TOP, FOOT = 58, 12, 12, 40  # its margins
TICKS = 5
ROOM = 0.05  # above and below the values, as a share of their range
ROOM_FOR_NAMES = 0.12
LINE, LETTER = 14, 6.5  # a name's height and the width of a letter, about
BESIDE, BASELINE = 12, 4  # from a point to its name, to the right and down

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One line of a chart. `faint`: in the background; `dotted`: each point is marked; `ringed`: with a ring too."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False
    dotted: bool = False
    ringed: bool = False


@dataclass(frozen=True)
class Spot:
    """A point with its name."""

    label: str
    at: Point
    colour: int = 0


@dataclass(frozen=True)
class Axis:
    """From values to places between `start` and `end`; what lies outside is put on the edge.

    `whole`: the values count something, such as steps.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False

    @classmethod
    def across(cls, values: Sequence[float], *, room: float = 0.0, log: bool = False) -> Axis:
        low, high = with_room(values, room, log)
        return cls(low, high, LEFT, WIDTH - RIGHT, log, whole=all(value == round(value) for value in values))

    @classmethod
    def upward(cls, values: Sequence[float], *, room: float = ROOM) -> Axis:
        return cls(*with_room(values, room), HEIGHT - FOOT, TOP)

    def at(self, value: float) -> float:
        low, high = self._scaled(self.low), self._scaled(self.high)
        share = (self._scaled(min(max(value, self.low), self.high)) - low) / (high - low)
        return round(self.start + share * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        found = log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)
        return [value for value in found if value == round(value)] if self.whole else found

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value


def with_room(values: Sequence[float], share: float, log: bool = False) -> tuple[float, float]:
    """A range that holds `values`, with a share of it to spare at both ends; below zero only where a value is."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** share if high > low else 2.0
        return low / factor, high * factor
    room = share * (high - low) if high > low else abs(high) / 10 or 1.0
    return (max(low - room, 0.0) if low >= 0 else low - room), high + room


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    note: str = "",
    across: str = "step",
    from_zero: bool = False,
    log: bool = False,
    capped: bool = False,
    keyed: bool = True,
) -> Html:
    """Lines over x; those without points are left out.

    `from_zero`: the vertical axis begins at 0. `log`: x is logarithmic, and positive. `capped`: what is far above the
    rest is put on the upper edge, and said. `keyed`: several lines are named above the chart.
    """
    lines = [line for line in lines if line.points]
    named = [line for line in lines if not line.faint]
    ys = [y for line in lines for _, y in line.points]
    top = ceiling(ys) if capped and ys else math.inf
    above = [y for y in ys if y > top]
    notes = [
        *([note] if note else []),
        *([f"{len(above):,} values are above this panel, up to {max(above):.3g}"] if above else []),
    ]
    said = [*([key(named)] if keyed and len(named) > 1 else []), *notes]
    if not lines:
        return figure(title, element("p", "nothing was recorded", class_="dim"), said=said)
    x = Axis.across([x for line in lines for x, _ in line.points], log=log)
    y = Axis.upward([*(y for y in ys if y <= top), *([0.0] if from_zero else [])])
    drawn = [part for line in lines for part in _line(x, y, line)]
    return figure(title, _svg(title, *_axes(x, y, across), *drawn), said=said)


def key(lines: Sequence[Line]) -> Html:
    """What each colour stands for."""
    samples = [element("span", class_=f"key {_style(line.colour)}") for line in lines]
    return together(
        element("span", sample, line.label, class_="name") for sample, line in zip(samples, lines, strict=True)
    )


def scatter(title: str, spots: Sequence[Spot], front: Sequence[int], *, across: str) -> Html:
    """Points with their names; those of `front`, indices by rising x, are joined and ringed."""
    if not spots:
        return figure(title, element("p", "nothing was recorded", class_="dim"))
    x = Axis.across([spot.at[0] for spot in spots], room=ROOM_FOR_NAMES)
    y = Axis.upward([spot.at[1] for spot in spots], room=ROOM_FOR_NAMES)
    places = [(x.at(spot.at[0]), y.at(spot.at[1])) for spot in spots]
    drawn = [_path([places[at] for at in front], "front")] if len(front) > 1 else []
    for at, (spot, (a, b)) in enumerate(zip(spots, places, strict=True)):
        drawn += [_ring((a, b))] if at in front else []
        remark = ", on the Pareto front" if at in front else ""
        drawn.append(_dot((a, b), f"dot {_style(spot.colour)}", _told(spot.label, spot.at) + remark))
    names = labels([spot.label for spot in spots], places)
    return figure(title, _svg(title, *_axes(x, y, across), *drawn, *names))


def bars(title: str, columns: Sequence[tuple[float, float, float]], *, across: str, note: str = "") -> Html:
    """A histogram: (from, to, height) for each bar."""
    said = [note] if note else []
    if not columns:
        return figure(title, element("p", "nothing was recorded", class_="dim"), said=said)
    x = Axis.across([edge for column in columns for edge in column[:2]])
    y = Axis.upward([0.0, *(height for _, _, height in columns)], room=0)
    drawn = []
    for first, last, height in columns:
        named = element("title", f"{number(first)} to {number(last)}: {number(height)}")
        left, upper = x.at(first), y.at(height)
        size = {"width": round(max(x.at(last) - left - 1, 0.5), 2), "height": round(y.at(0) - upper, 2)}
        drawn.append(element("rect", named, class_="bar c0", x=left, y=upper, **size))
    return figure(title, _svg(title, *_axes(x, y, across), *drawn), said=said)


def labels(names: Sequence[str], places: Sequence[Point]) -> Iterator[Html]:
    """Names beside their points, as near as no other name or point lies; to the left where the right is too narrow."""
    taken = [(x - BESIDE / 2, x + BESIDE / 2, y + BASELINE) for x, y in places]  # from, to, height
    for name, (x, y) in sorted(zip(names, places, strict=True), key=lambda one: one[1][1]):
        width = LETTER * len(name)
        left = x + BESIDE + width > WIDTH - RIGHT
        start = x - BESIDE - width if left else x + BESIDE
        beside = [one for one in taken if one[0] < start + width and start < one[1]]
        heights = (y + BASELINE + more for more in sorted(range(-HEIGHT, HEIGHT, 2), key=abs))
        free = (
            at
            for at in heights
            if TOP + LINE / 2 <= at <= HEIGHT - FOOT and all(abs(at - other) >= LINE for _, _, other in beside)
        )
        height = round(next(free, y + BASELINE), 2)
        taken.append((start, start + width, height))
        anchor, at = ("end", x - BESIDE) if left else ("start", x + BESIDE)
        yield element("text", name, x=round(at, 2), y=height, text_anchor=anchor, class_="name")


def _svg(title: str, *inside: Html) -> Html:
    return element("svg", *inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)


def _axes(x: Axis, y: Axis, across: str) -> list[Html]:
    """Rules with their numbers, and the name of the horizontal axis."""
    made = []
    for value in y.ticks():
        at = y.at(value)
        made.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=at, y2=at))
        made.append(element("text", number(value), x=LEFT - 6, y=round(at + BASELINE, 2), text_anchor="end"))
    for value in x.ticks():
        at = x.at(value)
        made.append(element("line", class_="grid", x1=at, x2=at, y1=TOP, y2=HEIGHT - FOOT))
        made.append(element("text", number(value), x=at, y=HEIGHT - FOOT + 16, text_anchor="middle"))
    return [*made, element("text", across, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle")]


def _line(x: Axis, y: Axis, line: Line) -> list[Html]:
    points = thinned(line.points)
    places = [(x.at(a), y.at(b)) for a, b in points]
    style = _style(line.colour) + (" faint" if line.faint else "")
    dots = [_dot(place, style, _told(line.label, point)) for place, point in zip(places, points, strict=True)]
    rings = [_ring(place) for place in places] if line.ringed else []
    return [_path(places, style), *rings, *(dots if line.dotted or len(places) == 1 else [])]


def _path(places: Sequence[Point], style: str) -> Html:
    return element("polyline", points=" ".join(f"{x},{y}" for x, y in places), class_=style)


def _dot(place: Point, style: str, told: str) -> Html:
    return element("circle", element("title", told), cx=place[0], cy=place[1], r=3.5, class_=style)


def _ring(place: Point) -> Html:
    return element("circle", cx=place[0], cy=place[1], r=8, class_="ring")


def _told(label: str, point: Point) -> str:
    return f"{label}: {point[1]:.5g} at {number(point[0])}"


def _style(colour: int) -> str:
    """From the second round of colours on, lines are dashed."""
    return f"c{colour % COLOURS}" + (" dashed" if colour >= COLOURS else "")


def thinned(points: Sequence[Point], most: int = POINTS_DRAWN) -> Sequence[Point]:
    """At most about `most` of the points: of each stretch its lowest and its highest, so that no spike is lost."""
    if len(points) <= most:
        return points
    size = math.ceil(2 * len(points) / most)
    kept = []
    for at in range(0, len(points), size):
        part = points[at : at + size]
        kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return kept


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, about TICKS of them."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step for step in (power, 2 * power, 5 * power, 10 * power) if step >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [
        round(at * step, 12 - math.floor(math.log10(step))) for at in range(first, math.floor(high / step + 1e-9) + 1)
    ]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range; the powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5)
    return [f * 10.0**n for n in powers for f in factors if low * 0.999 <= f * 10.0**n <= high * 1.001]


def number(value: float) -> str:
    """For an axis: 12,000, 1.5, 2e-05."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e7 else f"{value:.4g}"

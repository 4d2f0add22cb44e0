"""Charts as inline SVG: lines, and points with the Pareto front. Colours are classes, which the page's style fills in.

Every text is escaped; nothing refers to anything outside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 78, 616, 22, 302
COLOURS = 8
"""classes c0 to c7; a ninth series is dashed"""
LINE = 16
"""height of a label"""
LETTER = 7.5
"""width of a letter, about"""


@dataclass(frozen=True)
class Series:
    """A line. `number` decides its colour, the same in every chart of a page."""

    name: str
    number: int
    points: Sequence[tuple[float, float]]

    @property
    def style(self) -> str:
        return f"c{self.number % COLOURS}" + (" dashed" if self.number >= COLOURS else "")


@dataclass(frozen=True)
class Axis:
    """From values to places between `start` and `end` of the picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        share = (self._scaled(value) - self._scaled(self.low)) / (self._scaled(self.high) - self._scaled(self.low))
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within a range, in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten within a range; powers alone where there are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if len(powers) > 4 else (1, 2, 5)
    return [f * 10.0**n for n in powers for f in factors if low * 0.999 <= f * 10.0**n <= high * 1.001]


def around(values: Sequence[float], *, share: float = 0.06, log: bool = False) -> tuple[float, float]:
    """A range with some room on both sides of its values."""
    low, high = min(values), max(values)
    if log:
        factor = (high / low) ** share if high > low else 2.0
        return low / factor, high * factor
    room = share * (high - low) or abs(low) * 0.1 or 1.0
    return low - room, high + room


def lines(title: str, series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool, marks: bool) -> str:
    """A line chart; points above the bulk of all are drawn at the upper edge. "" without points."""
    given = [one for one in series if one.points]
    xs, ys = [x for one in given for x, _ in one.points], [y for one in given for _, y in one.points]
    if not xs:
        return ""
    x = Axis(*around(xs, log=log_x), LEFT, RIGHT, log_x)
    y = Axis(*around([value for value in ys if value <= top_of(ys)]), BOTTOM, TOP)
    drawn = list(frame(x, y, x_label, y_label))
    for one in given:
        places = [(x.at(a), y.at(b)) for a, b in one.points]
        path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in places)
        drawn.append(f'<path class="line {one.style}" d="{path}"><title>{escape(one.name)}</title></path>')
        if marks or len(places) == 1:
            drawn += [
                dot(a, b, one.style, f"{one.name}: {given_x:g}, {given_y:.4f}")
                for (a, b), (given_x, given_y) in zip(places, one.points, strict=True)
            ]
    return picture(title, drawn)


def top_of(values: Sequence[float]) -> float:
    """The largest value of the bulk: one that flew off must not flatten the others."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[round(0.9 * (len(ordered) - 1))]
    return max(value for value in ordered if value <= high + 3 * (high - low))


def dot(a: float, b: float, style: str, text: str, radius: float = 4) -> str:
    place = f'cx="{a:.1f}" cy="{b:.1f}" r="{radius:g}"'
    return f'<circle class="dot {style}" {place}><title>{escape(text)}</title></circle>'


def scatter(title: str, points: Sequence[Series], front: Sequence[int], x_label: str, y_label: str, form: str) -> str:
    """One point for each run, with its name; those of `front` (indices, by rising cost) are joined and ringed.

    form: how a cost is written.
    """
    if not points:
        return ""
    pairs = [one.points[0] for one in points]
    x = Axis(*around([a for a, _ in pairs], share=0.12), LEFT, RIGHT)
    y = Axis(*around([b for _, b in pairs], share=0.12), BOTTOM, TOP)
    drawn = list(frame(x, y, x_label, y_label))
    places = [(x.at(a), y.at(b)) for a, b in pairs]
    if len(front) > 1:
        path = "M" + "L".join(f"{places[i][0]:.1f} {places[i][1]:.1f}" for i in front)
        drawn.append(f'<path class="front" d="{path}"/>')
    for i, (one, (a, b)) in enumerate(zip(points, places, strict=True)):
        best = i in front
        said = f"{one.name}: {pairs[i][0]:{form}}, {pairs[i][1]:.4f}" + (", on the Pareto front" if best else "")
        if best:
            drawn.append(f'<circle class="ring" cx="{a:.1f}" cy="{b:.1f}" r="9"/>')
        drawn.append(dot(a, b, one.style, said, 5))
    drawn += labels([one.name for one in points], places)
    return picture(title, drawn)


def labels(names: Sequence[str], places: Sequence[tuple[float, float]]) -> Iterator[str]:
    """Names beside their points, moved up or down where they would lie on each other."""
    taken: list[tuple[float, float, float]] = []
    for name, (a, b) in sorted(zip(names, places, strict=True), key=lambda one: one[1][1]):
        width = LETTER * len(name)
        left = a + 13 + width > RIGHT
        start = a - 13 - width if left else a + 13
        at = b + 4
        while any(start < end and begin < start + width and abs(at - other) < LINE for begin, end, other in taken):
            at += 2
        taken.append((start, start + width, at))
        anchor, x = ("end", a - 13) if left else ("start", a + 13)
        yield f'<text class="name" x="{x:.1f}" y="{at:.1f}" text-anchor="{anchor}">{escape(name)}</text>'


def frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Iterator[str]:
    """Grid lines with their numbers, and what the axes say."""
    for value in x.ticks():
        a = x.at(value)
        yield f'<line class="grid" x1="{a:.1f}" y1="{TOP}" x2="{a:.1f}" y2="{BOTTOM}"/>'
        yield f'<text x="{a:.1f}" y="{BOTTOM + 20}" text-anchor="middle">{value:.6g}</text>'
    for value in y.ticks():
        b = y.at(value)
        yield f'<line class="grid" x1="{LEFT}" y1="{b:.1f}" x2="{RIGHT}" y2="{b:.1f}"/>'
        yield f'<text x="{LEFT - 8}" y="{b + 4:.1f}" text-anchor="end">{value:.6g}</text>'
    yield f'<text x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>'
    place = f'x="{-(TOP + BOTTOM) / 2:g}" y="16"'
    yield f'<text transform="rotate(-90)" {place} text-anchor="middle">{escape(y_label)}</text>'


def picture(title: str, drawn: Sequence[str]) -> str:
    inside = "\n".join(drawn)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">\n{inside}\n</svg>'

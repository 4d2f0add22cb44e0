"""A page as one HTML file: nothing is loaded, nothing is run, and text cannot become markup.

    page("Title", element("h1", "a < b"), table(["step", "loss"], [["1", "2.0"]]), chart("Loss", [Line("run", found)]))

`element` escapes every string that is not `Html` already, so what comes from data needs no care. The page follows the
reader's choice of light or dark, and columns give way to one below another where it is narrow. Charts are drawn in SVG.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lrft.text import visible

POINTS_DRAWN = 600  # of one line: more cannot be told apart
WIDTH, HEIGHT = 460, 250  # of a chart, in its own units
LEFT, RIGHT, TOP, FOOT = 58, 12, 12, 40  # its margins
TICKS = 5

Point = tuple[float, float]

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #22262b; --dim: #5d6670; --rule: #dde1e6; --panel: #f5f6f8;
  --c0: #2a6fb0; --c1: #c2600f; --c2: #3f7f3f; --c3: #7d5ba6; --c4: #b02a2a; --c5: #2b8085; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #e4e7eb; --dim: #9aa4af; --rule: #343a41;
  --panel: #1e2227; --c0: #6cabe6; --c1: #f0a057; --c2: #86c186; --c3: #b79be0; --c4: #f08080; --c5: #6cc5ca; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; } p { margin: .4rem 0; } .dim { color: var(--dim); }
.bad { color: var(--c4); font-weight: 600; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: .5rem; min-width: 0; }
figcaption { font-weight: 600; } figcaption .dim { font-weight: 400; font-size: .85rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; } svg .grid { stroke: var(--rule); }
svg polyline { fill: none; stroke-width: 1.6; } svg .faint { opacity: .35; stroke-width: 1; }
svg .bar { fill: var(--c0); }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); } .c3 { stroke: var(--c3); }
.c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); } circle { fill: var(--panel); stroke-width: 2; }
.key { display: inline-block; width: 1.4em; margin: 0 .4em .2em 0; vertical-align: middle; border-top: 3px solid; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--rule);
  min-width: 4rem; }
th { color: var(--dim); font-weight: 600; } td { white-space: pre-wrap; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; white-space: pre-wrap; }
pre { background: var(--panel); padding: .75rem; border-radius: .5rem; margin: .4rem 0; }
summary { cursor: pointer; font-weight: 600; } details { margin: .6rem 0; } ul { padding-left: 1.2rem; }
"""


class Html(str):
    """Markup that is sound already."""

    __slots__ = ()


@dataclass(frozen=True)
class Line:
    """One line of a chart. `faint`: in the background; `dotted`: each point is marked."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    faint: bool = False
    dotted: bool = False


def text(words: str) -> Html:
    """Text of any origin as the same characters. Control characters and direction overrides are written out."""
    lines = [visible(line.replace("\t", "    ")) for line in words.splitlines()]
    return Html(html.escape("\n".join(lines)))


def element(name: str, *inside: str, **attributes: str | float) -> Html:
    """<name ...>inside</name>. An attribute's `_` is a hyphen; `class_` is class."""
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{said}>{together(inside)}</{name}>")


def together(parts: Iterable[str]) -> Html:
    """The parts one after the other, text escaped."""
    return Html("".join(part if isinstance(part, Html) else text(part) for part in parts))


def page(title: str, *body: str) -> Html:
    """The whole file. Its own policy forbids it to load or run anything."""
    return Html(
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n'
        f"{element('title', title)}\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(together([part]) for part in body)
        + "\n</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """`head` may be all empty: then there is none."""
    top = [element("thead", element("tr", *(element("th", cell) for cell in head)))] if any(head) else []
    lines = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("div", element("table", *top, element("tbody", *lines)), class_="wide")


def points(items: Iterable[str]) -> Html:
    return element("ul", *(element("li", item) for item in items))


def details(summary: str, *inside: str, is_open: bool = False) -> Html:
    """What a click shows and hides."""
    opened: dict[str, str] = {"open": ""} if is_open else {}
    return element("details", element("summary", summary), *inside, **opened)


def charts(*figures: str) -> Html:
    """Side by side where there is room."""
    return element("div", *figures, class_="charts")


def chart(title: str, lines: Sequence[Line], *, note: str = "", across: str = "step", from_zero: bool = False) -> Html:
    """Lines over x. Every value is finite; lines without points are left out. `from_zero`: the axis begins at 0."""
    lines = [line for line in lines if line.points]
    keys = [
        together([element("span", class_=f"key c{line.colour}", style=f"color:var(--c{line.colour})"), line.label, " "])
        for line in lines
        if not line.faint
    ]
    legend = [element("span", *keys, class_="dim")] if len(keys) > 1 else []
    more = [element("span", note, class_="dim")] if note else []
    caption = element("figcaption", *spaced([Html(text(title)), *legend, *more]))
    if not lines:
        return element("figure", caption, element("p", "nothing was recorded", class_="dim"))
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    frame = Frame.around(xs, [*ys, 0.0] if from_zero else ys)
    drawn = [part for line in lines for part in _line(frame, line)]
    return element("figure", caption, _svg(title, *frame.axes(across), *drawn))


def bars(title: str, columns: Sequence[tuple[float, float, float]], *, across: str, note: str = "") -> Html:
    """A histogram: (from, to, height) for each bar."""
    more = [element("span", note, class_="dim")] if note else []
    caption = element("figcaption", *spaced([Html(text(title)), *more]))
    if not columns:
        return element("figure", caption, element("p", "nothing was recorded", class_="dim"))
    frame = Frame.around([edge for column in columns for edge in column[:2]], [0.0, *(c[2] for c in columns)], pad=0)
    drawn = []
    for first, last, height in columns:
        x, y = frame.x(first), frame.y(height)
        named = element("title", f"{number(first)} to {number(last)}: {number(height)}")
        size = {"width": round(max(frame.x(last) - x - 1, 0.5), 2), "height": round(frame.y(0) - y, 2)}
        drawn.append(element("rect", named, class_="bar", x=round(x, 2), y=round(y, 2), **size))
    return element("figure", caption, _svg(title, *frame.axes(across), *drawn))


def spaced(parts: Sequence[Html]) -> list[Html]:
    return [part if at == 0 else Html(f"<br>{part}") for at, part in enumerate(parts)]


@dataclass(frozen=True)
class Frame:
    """The panel of a chart: what its edges mean. `whole`: x counts something, such as steps."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float
    whole: bool

    @classmethod
    def around(cls, xs: Sequence[float], ys: Sequence[float], pad: float = 0.05) -> Frame:
        low, high = min(ys), max(ys)
        room = pad * (high - low) or (0.0 if high > low else abs(high) / 10 or 1.0)
        bottom = low if low == 0 else low - room
        left, right = min(xs), max(xs)
        whole = all(x == round(x) for x in xs)
        return cls(left - (left == right), right + (left == right), bottom, high + room, whole)

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - FOOT - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - FOOT)

    def axes(self, across: str) -> list[Html]:
        """Rules with their numbers, and the name of the horizontal axis."""
        made = []
        for value in ticks(self.y_low, self.y_high):
            y = round(self.y(value), 2)
            made.append(element("line", class_="grid", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y))
            made.append(element("text", number(value), x=LEFT - 6, y=y + 4, text_anchor="end"))
        for value in ticks(self.x_low, self.x_high):
            if self.whole and value != round(value):
                continue
            made.append(
                element("text", number(value), x=round(self.x(value), 2), y=HEIGHT - FOOT + 16, text_anchor="middle")
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        return [*made, element("text", across, x=middle, y=HEIGHT - 6, text_anchor="middle")]


def _svg(title: str, *inside: Html) -> Html:
    return element("svg", *inside, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)


def _line(frame: Frame, line: Line) -> list[Html]:
    places = [(round(frame.x(x), 2), round(frame.y(y), 2)) for x, y in thinned(line.points)]
    path = " ".join(f"{x},{y}" for x, y in places)
    made = [element("polyline", points=path, class_=f"c{line.colour}{' faint' if line.faint else ''}")]
    if line.dotted or len(places) == 1:
        for (x, y), (at, value) in zip(places, thinned(line.points), strict=True):
            named = element("title", f"{line.label}: {number(value)} at {number(at)}")
            made.append(element("circle", named, cx=x, cy=y, r=3.5, class_=f"c{line.colour}"))
    return made


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


def number(value: float) -> str:
    """For an axis: 12,000, 1.5, 2e-05."""
    return f"{value:,.0f}" if value == round(value) and abs(value) < 1e7 else f"{value:.4g}"

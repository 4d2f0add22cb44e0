"""docs/rooms.svg and the table of rooms: who may import whom by tests/test_layers.py, and who does."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from html import escape

from test_layers import FLOORS, ROOT, all_imports

WIDTH, MARGIN = 940, 20
BOX, FLOOR = 30, 62  # heights of a room and a floor
LETTER, PADDING = 8, 12
# What nearly every room imports, and what only starts the program: their arrows would hide the others.
PLAIN = ("errors", "version", "utils", "__init__", "__main__")
STYLE = """\
text { font: 14px ui-sans-serif, system-ui, sans-serif; text-anchor: middle; dominant-baseline: central; fill: #1f2328 }
rect { fill: #ffffff; stroke: #57606a }
path { fill: none; stroke: #8c959f; stroke-width: 1.2 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect { fill: #161b22; stroke: #8b949e } path { stroke: #6e7681 }
}"""

Place = tuple[float, float, float]
"""left, top and width of a room's box"""


def imports() -> dict[str, set[str]]:
    """Room -> the rooms that it imports, anywhere in its files."""
    found: dict[str, set[str]] = defaultdict(set)
    for room, imported, _ in all_imports():
        if imported in {name for line in FLOORS for name in line.split()}:
            found[room].add(imported)
    return dict(found)


def steps(found: Mapping[str, set[str]]) -> list[tuple[str, str]]:
    """The arrows that are drawn: an import that also follows from two others is left out, and those of PLAIN."""
    below: dict[str, set[str]] = {}
    for room in (name for line in FLOORS for name in line.split()):  # lower floors first
        direct = found.get(room, set())
        below[room] = direct.union(*(below[one] for one in direct))
    return [
        (room, one)
        for room, direct in found.items()
        for one in sorted(direct)
        if not {room, one} & {*PLAIN} and not any(one in below[other] for other in direct - {one})
    ]


def drawn() -> list[str]:
    """The floors of the picture, the highest first."""
    lines = [" ".join(room for room in line.split() if room not in ("__init__", "__main__")) for line in FLOORS]
    return [line for line in reversed(lines) if line]


def places() -> dict[str, Place]:
    """Where each room stands: a floor for each line of FLOORS, its rooms spread over the width."""
    found: dict[str, Place] = {}
    for number, line in enumerate(drawn()):
        rooms = line.split()
        for at, room in enumerate(rooms):
            width = len(room) * LETTER + 2 * PADDING
            middle = WIDTH * (at + 0.5) / len(rooms)
            found[room] = (round(middle - width / 2), MARGIN + number * FLOOR, width)
    return found


def arrow(start: Place, end: Place) -> str:
    """From the foot of one room to the head of another."""
    x, y, width = start
    to_x, to_y, to_width = end
    x, y, to_x = x + width / 2, y + BOX, to_x + to_width / 2
    bend = (to_y - y) / 2
    return f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"/>'


def box(room: str, place: Place, imported: set[str]) -> str:
    x, y, width = place
    title = f"{room} imports {', '.join(sorted(imported)) or 'no other room'}"
    shape = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="5"/>'
    return f'<g><title>{escape(title)}</title>{shape}<text x="{x + width / 2:g}" y="{y + BOX / 2:g}">{room}</text></g>'


def picture() -> str:
    """docs/rooms.svg."""
    found, where = imports(), places()
    height = MARGIN * 2 + (len(drawn()) - 1) * FLOOR + BOX
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="title">',
        '<title id="title">The rooms of lrft on their floors; lines lead down to the rooms that are imported</title>',
        f"<style>\n{STYLE}\n</style>",
        *(arrow(where[room], where[one]) for room, one in steps(found)),
        *(box(room, place, found.get(room, set())) for room, place in where.items()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def about(room: str) -> str:
    """The first paragraph of the docstring of a room, which is a folder or a single file."""
    file = ROOT / room / "__init__.py" if (ROOT / room).is_dir() else ROOT / f"{room}.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def table() -> str:
    """A line for each room, the highest floor first."""
    rows = [f"| `{room}` | {about(room)} |" for line in drawn() for room in line.split()]
    return "\n".join(["| room | what it is about |", "|---|---|", *rows])

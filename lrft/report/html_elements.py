"""A page as one HTML file: nothing is loaded, nothing is run, and text cannot become markup.

    page("Title", element("h1", "a < b"), table(["step", "loss"], [["1", "2.0"]]))

`element` escapes every string that is not `Html` already, so what comes from data needs no care. The page follows the
reader's choice of light or dark, and columns give way to one below another where it is narrow. Charts: svg_charts.py.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from lrft.utils.text import visible

COLOURS = 8  # classes c0 to c7

STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #22262b; --dim: #5d6670; --rule: #dde1e6; --panel: #f5f6f8;
  --c0: #2a6fb0; --c1: #c2600f; --c2: #3f7f3f; --c3: #7d5ba6; --c4: #b02a2a; --c5: #2b8085; --c6: #8d6b12;
  --c7: #b0468a; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181c; --ink: #e4e7eb; --dim: #9aa4af; --rule: #343a41;
  --panel: #1e2227; --c0: #6cabe6; --c1: #f0a057; --c2: #86c186; --c3: #b79be0; --c4: #f08080; --c5: #6cc5ca;
  --c6: #dcc765; --c7: #f0a0d0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
h4 { font-size: .85rem; margin: .6rem 0 .2rem; color: var(--dim); } p { margin: .4rem 0; } p, li { max-width: 52rem; }
.dim { color: var(--dim); } .bad { color: var(--c4); } p.bad { font-weight: 600; }
.beside { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: .5rem; min-width: 0; }
figcaption { font-weight: 600; } figcaption .dim { display: block; font-weight: 400; font-size: .85rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; } svg .name { fill: var(--ink); }
svg .grid { stroke: var(--rule); } svg polyline { fill: none; stroke: currentColor; stroke-width: 1.6; }
svg circle { fill: var(--panel); stroke: currentColor; stroke-width: 2; } svg .dot, svg .bar { fill: currentColor; }
svg .faint { opacity: .35; stroke-width: 1; } svg polyline.dashed { stroke-dasharray: 6 4; }
svg .front { stroke: var(--dim); stroke-width: 1; stroke-dasharray: 3 4; }
svg .ring { fill: none; stroke: var(--ink); stroke-width: 1.2; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); } .c7 { color: var(--c7); }
span.name { display: inline-block; margin-right: 1em; }
.key { display: inline-block; width: 1.4em; margin: 0 .4em .2em 0; vertical-align: middle; border-top: 3px solid; }
.key.dashed { border-top-style: dashed; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--rule);
  min-width: 4rem; }
th { color: var(--dim); font-weight: 600; } td { white-space: pre-wrap; max-width: 30rem; }
.figures th, .figures td { white-space: normal; min-width: 0; } .figures thead th { vertical-align: bottom; }
.figures tbody th { color: var(--ink); white-space: nowrap; }
code, pre { font: .85rem/1.45 ui-monospace, monospace; white-space: pre-wrap; }
pre { background: var(--panel); padding: .75rem; border-radius: .5rem; margin: .4rem 0; }
mark { background: none; color: inherit; text-decoration: underline; text-underline-offset: .2em; font-weight: 600; }
mark::before { content: "["; } mark::after { content: "]"; }
summary { cursor: pointer; font-weight: 600; } details { margin: .6rem 0; } ul { padding-left: 1.2rem; }
@media (max-width: 62rem) { .figures thead { display: none; } .figures tr { display: block; padding: .5rem 0; }
  .figures td { display: flex; justify-content: space-between; gap: 1.5rem; text-align: right; }
  .figures td::before { content: attr(data-name); color: var(--dim); text-align: left; flex: none; }
  .figures tbody th { display: block; font-size: 1rem; } }
@media (max-width: 40rem) { svg text { font-size: 14px; } }
@media print { body { max-width: none; } .wide { overflow: visible; } }
"""


class Html(str):
    """Markup that is sound already."""

    __slots__ = ()


def text(words: str) -> Html:
    """Text of any origin as the same characters. Control characters and direction overrides are written out."""
    lines = [visible(line.replace("\t", "    ")) for line in words.splitlines()]
    return Html(html.escape("\n".join(lines)))


def element(name: str, *inside: str, **attributes: str | float) -> Html:
    """<name ...>inside</name>. An attribute's `_` is a hyphen; `class_` is class."""
    said = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(str(value))}"' for key, value in attributes.items())
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
    """Cells that wrap. `head` may be all empty: then there is none."""
    top = [element("thead", element("tr", *(element("th", cell) for cell in head)))] if any(head) else []
    lines = (element("tr", *(element("td", cell) for cell in row)) for row in rows)
    return element("div", element("table", *top, element("tbody", *lines)), class_="wide")


def wide_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """A table of many short cells. Where it is narrow each line becomes a list of its own, below its first cell."""
    top = element("thead", element("tr", *(element("th", cell, scope="col") for cell in head)))
    lines = (element("tr", element("th", name, scope="row"), *map(named, head[1:], cells)) for name, *cells in rows)
    return element("div", element("table", top, element("tbody", *lines), class_="figures"), class_="wide")


def named(title: str, cell: str) -> Html:
    """A cell that can stand without the head of its table."""
    return element("td", cell, data_name=title)


def bullets(items: Iterable[str], **attributes: str) -> Html:
    return element("ul", *(element("li", item) for item in items), **attributes)


def details(summary: str, *inside: str, is_open: bool = False) -> Html:
    """What a click shows and hides."""
    opened: dict[str, str] = {"open": ""} if is_open else {}
    return element("details", element("summary", summary), *inside, **opened)


def figure(title: str, drawn: Html, *, said: Iterable[str] = ()) -> Html:
    """A picture below its title and what is said of it, a line each."""
    lines = [element("span", words, class_="dim") for words in said]
    return element("figure", element("figcaption", title, *lines), drawn)


def beside(*parts: str) -> Html:
    """Side by side where there is room."""
    return element("div", *parts, class_="beside")

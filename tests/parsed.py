"""Reads a page back: whether it is one sound file, and what it says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from html.parser import HTMLParser

from lrft.report import svg_charts

EVIL = "<script>alert('x')</script> **bold** | `code` &amp; \"quoted\" <img src=x onerror=alert(1)>"
VOID = ("meta", "br")


class Parsed(HTMLParser):
    """Refuses a page whose elements do not nest.

    `found`: (element, attributes, text directly inside). `tables`: their lines of cells, with all the text inside.
    """

    def __init__(self, made: str) -> None:
        super().__init__()
        self.open: list[int] = []
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(made)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert len(dict(attributes)) == len(attributes), (tag, attributes)
        self.found.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append(len(self.found) - 1)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.found[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.found[self.open[-1]][2].append(data)
        if any(self.found[at][0] in ("td", "th") for at in self.open):
            self.tables[-1][-1][-1] += data

    def texts(self, *tags: str) -> list[str]:
        return ["".join(inside) for tag, _, inside in self.found if tag in tags]

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.found if name == tag]


def sound(made: str) -> Parsed:
    """The parsed page, after checking that it loads nothing, runs nothing and draws inside its charts."""
    assert made.startswith("<!DOCTYPE html>\n")
    parsed = Parsed(made)
    for tag, attributes, _ in parsed.found:
        assert tag not in ("script", "link", "img", "iframe", "object", "form", "base", "a"), tag
        assert not any(name.startswith("on") or name in ("src", "href", "srcset", "style") for name in attributes), tag
    style = "".join(parsed.texts("style"))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(a["content"] for a in parsed.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert parsed.all("meta")[1] == {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    for x, y in places(parsed):
        assert 0 <= x <= svg_charts.WIDTH
        assert 0 <= y <= svg_charts.HEIGHT
    drawn = [ElementTree.fromstring(one) for one in re.findall("<svg.*?</svg>", made, flags=re.DOTALL)]
    assert len(drawn) == len(parsed.all("svg"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", made)
    return parsed


def places(parsed: Parsed) -> Iterator[tuple[float, float]]:
    """Every point of every chart."""
    for attributes in parsed.all("polyline"):
        for pair in (attributes["points"] or "").split():
            x, y = map(float, pair.split(","))
            yield x, y
    for attributes in parsed.all("circle"):
        yield float(attributes["cx"] or ""), float(attributes["cy"] or "")
    for attributes in parsed.all("rect"):
        x, y, width, height = (float(attributes[name] or "") for name in ("x", "y", "width", "height"))
        yield from ((x, y), (x + width, y + height))

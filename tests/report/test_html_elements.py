"""A page: text stays text, and both colour schemes can be read."""

from __future__ import annotations

import re

import pytest
from parsed import EVIL, Parsed, sound

from lrft.report import html_elements


@pytest.mark.parametrize("words", ["", "a\nb\r\nc", "\ttab", "a\x00b", "\u2028", "<>&\"'", "漢字 é", "\udc80"])
def test_text_is_the_same_characters(words: str) -> None:
    made = html_elements.element("p", words, title=words)
    made.encode("utf-8")
    ((_, attributes, (*parts,)),) = Parsed(made).found
    inside = "".join(parts)
    assert attributes == {"title": inside}
    lines = [line.replace("\t", "    ") for line in words.splitlines()]
    assert [len(line) for line in inside.split("\n")] >= [len(line) for line in lines or [""]]
    assert "<p" in made[:2]
    assert inside.replace("\\x00", "\x00").replace("\\udc80", "\udc80") == "\n".join(lines)


def test_only_what_is_markup_already_is_not_escaped() -> None:
    inner = html_elements.element("b", "<i>")
    assert html_elements.element("p", inner, "<u>", class_="a b", stroke_width=1.5) == (
        '<p class="a b" stroke-width="1.5"><b>&lt;i&gt;</b>&lt;u&gt;</p>'
    )


def test_every_part_of_a_page_escapes_and_nests() -> None:
    cells: tuple[list[str], list[list[str]]] = ([EVIL, EVIL], [[EVIL, EVIL]])
    figure = html_elements.figure(EVIL, html_elements.element("svg"), said=[EVIL])
    parts = [
        *(
            html_elements.table(*cells),
            html_elements.wide_table(*cells),
            html_elements.bullets([EVIL], class_=EVIL),
            html_elements.details(EVIL, EVIL),
        ),
        *(html_elements.beside(figure, EVIL), html_elements.element("p", EVIL, title=EVIL)),
    ]
    parsed = sound(html_elements.page(EVIL, EVIL, *parts))
    assert parsed.tables == [[[EVIL, EVIL], [EVIL, EVIL]]] * 2
    for tag in ("title", "td", "th", "li", "summary", "details", "figcaption", "span", "div", "p"):
        assert EVIL in parsed.texts(tag), tag
    assert [a["title"] for a in parsed.all("p")] == [EVIL]
    assert parsed.all("ul") == [{"class": EVIL}]


def test_names_of_lines_are_headers() -> None:
    parsed = Parsed(html_elements.wide_table(["run", "loss"], [["a", "1"], ["b", "2"]]))
    assert [a["scope"] for a in parsed.all("th")] == ["col", "col", "row", "row"]
    assert parsed.texts("td") == ["1", "2"]
    assert [a["data-name"] for a in parsed.all("td")] == ["loss", "loss"], "shown where there is no head"


# Light and dark


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_schemes_can_be_read() -> None:
    light, dark = (
        dict(re.findall(r"(--\w+): (#\w{6})", part)) for part in re.findall(r":root {(.*?)}", html_elements.STYLE, re.S)
    )
    assert light.keys() == dark.keys() == set(re.findall(r"var\((--\w+)\)", html_elements.STYLE))
    assert set(light) >= {f"--c{n}" for n in range(html_elements.COLOURS)}
    assert "prefers-color-scheme: dark" in html_elements.STYLE
    for scheme in (light, dark):
        for ground in (scheme["--ground"], scheme["--panel"]):
            assert contrast(scheme["--ink"], ground) >= 7
            assert contrast(scheme["--dim"], ground) >= 4.5
            assert all(contrast(scheme[f"--c{n}"], ground) >= 3 for n in range(html_elements.COLOURS))
            assert contrast(scheme["--c4"], ground) >= 4.5, "that of words, in .bad"
    assert luminance(light["--ground"]) > 0.9 > 0.1 > luminance(dark["--ground"])

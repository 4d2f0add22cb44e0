"""What `lrft data` found, as lines for a terminal and as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrft.report.html_elements import Html, beside, element, page, table
from lrft.report.svg_charts import bars
from lrft.utils.text import Row, count


def lines(facts: Mapping[str, Any]) -> list[Row]:
    """Labels with their texts."""
    rows: list[Row] = [("sources", [source_words(source) for source in facts["sources"]])]
    for role, part in facts["parts"].items():
        rows.append((role, [f"{count(part['rows'], 'row')}   {facts['unit']} per row: {quantile_words(part)}"]))
        rows += [
            (f"{name}est", [f"{row['length']:,}  {row['source']}" for row in part[f"{name}est"][:3]])
            for name in ("long", "short")
        ]
    rows.append(("duplicates", list(duplicate_lines(facts))))
    if facts["overlaps"]:
        rows.append(("overlap", list(overlap_lines(facts))))
    return rows


def source_words(source: Mapping[str, Any]) -> str:
    dropped = "".join(f", {n:,} dropped: {reason}" for reason, n in source["dropped"].items())
    cut = f", {source['truncated']:,} truncated" if source["truncated"] else ""
    of = f"{source['role']}, {source['format']}, {source['used']:,} of {source['read']:,} used"
    return f"{source['path']}: {of}{dropped}{cut}"


def quantile_words(part: Mapping[str, Any]) -> str:
    named = {"max": "longest"}
    return ", ".join(f"{named.get(name, f'{name} %')} {value:,}" for name, value in part["lengths"].items())


def duplicate_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for role, found in facts["duplicates"].items():
        yield f"{role}: {count(found['exact'], 'exact copy', 'exact copies')}, {count(found['near'], 'near duplicate')}"
        yield from (f"  same: {'  '.join(group)}" for group in found["exact_examples"])
        yield from near_lines(found)


def overlap_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for found in facts["overlaps"]:
        rows = f"{found['exact']:,} {found['second']} rows are also {found['first']} rows"
        yield f"{rows}, {found['near']:,} more are similar to one"
        yield from (f"  same: {'  '.join(pair)}" for pair in found["exact_examples"])
        yield from near_lines(found)


def near_lines(found: Mapping[str, Any]) -> Iterator[str]:
    for example in found["near_examples"]:
        yield f"  {example['similarity']:.0%} the same: {'  '.join(example['rows'])}"


def data_page(title: str, facts: Mapping[str, Any]) -> Html:
    """One HTML file: counts, a histogram of the lengths of each part, the longest and shortest rows, duplicates."""
    reasons = [
        [
            source["path"],
            source["role"],
            source["format"],
            f"{source['read']:,}",
            f"{source['used']:,}",
            _reasons(source),
        ]
        for source in facts["sources"]
    ]
    return page(
        f"Data of {title}",
        element("h1", f"Data of {title}"),
        element("h2", "Sources"),
        table(["source", "part", "format", "read", "used", "left out"], reasons),
        element("h2", "Lengths"),
        beside(*(_histogram(role, part, facts["unit"]) for role, part in facts["parts"].items())),
        *(html for role, part in facts["parts"].items() for html in _ends(role, part, facts["unit"])),
        element("h2", "Duplicates"),
        element("pre", "\n".join(duplicate_lines(facts))),
        *([element("h2", "Overlap"), element("pre", "\n".join(overlap_lines(facts)))] if facts["overlaps"] else []),
    )


def _reasons(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in source["dropped"].items())


def _histogram(role: str, part: Mapping[str, Any], unit: str) -> Html:
    edges = [0, *(column["up_to"] for column in part["by_length"])]
    columns = [(edges[k], column["up_to"], column["rows"]) for k, column in enumerate(part["by_length"])]
    note = f"{count(part['rows'], 'row')}: {quantile_words(part)}"
    return bars(f"{role}: rows by {unit}", columns, across=unit, note=note)


def _ends(role: str, part: Mapping[str, Any], unit: str) -> Iterator[Html]:
    for name in ("longest", "shortest"):
        yield element("h3", f"{role}: {name} rows")
        yield table([unit, "row", "begins with"], [[f"{r['length']:,}", r["source"], r["text"]] for r in part[name]])

"""The page of tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lrft.report.html_elements import Html, element, page, wide_table
from lrft.utils.text import count, decimals

Facts = Mapping[str, Any]
NOTHING = "–"
HEAD = ["task", "metric", "value", "standard error", "rows", "examples"]


def lines(facts: Facts) -> list[list[str]]:
    """A line for each figure."""
    return [
        [
            row["task"],
            metric_of(row),
            decimals(row["value"], 4),
            NOTHING if row["stderr"] is None else decimals(row["stderr"], 4),
            NOTHING if row["rows"] is None else f"{row['rows']:,}",
            NOTHING if row["num_fewshot"] is None else str(row["num_fewshot"]),
        ]
        for row in facts["results"]
    ]


def metric_of(row: Facts) -> str:
    """`acc`, or `exact_match (strict-match)`, with an arrow in words where it is known which is better."""
    better = {True: ", higher is better", False: ", lower is better"}.get(row["higher_is_better"], "")
    return row["metric"] + ("" if row["filter"] == "none" else f" ({row['filter']})") + better


def remarks(facts: Facts) -> Iterator[str]:
    """How it was asked."""
    asked = facts["settings"]
    yield f"lm-evaluation-harness {facts['versions']['lm_eval']}"
    yield "with the trained chat template" if asked["chat_template"] else "without a chat template"
    if asked["limit"] is not None:
        yield f"only the first {count(asked['limit'], 'row')} of each task: not to be compared with published figures"


def task_page(facts: Facts) -> Html:
    """One HTML file."""
    title = f"Tasks of {facts['target']}"
    return page(
        title,
        element("h1", title),
        *(element("p", words, class_="dim") for words in remarks(facts)),
        wide_table(HEAD, lines(facts)),
    )

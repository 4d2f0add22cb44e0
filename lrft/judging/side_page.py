"""The page of a comparison of two models: figures, then answers side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lrft.judging.words import Part, marked
from lrft.report.html_elements import Html, beside, bullets, details, element, page, wide_table
from lrft.utils.text import count, decimals

Facts = Mapping[str, Any]
NOTHING = "–"
PROMPT_SHOWN = 2000  # characters
ANSWERS_SHOWN = 200  # of a file


def side_page(facts: Facts) -> Html:
    """One HTML file. `facts` are those of `side_by_side.compare`."""
    title = f"{facts['first']} and {facts['second']}"
    return page(
        title,
        element("h1", title),
        *(element("p", words, class_="dim") for words in explained(facts)),
        *(part for name, found in facts["data"].items() for part in _file(name, found, facts)),
    )


def explained(facts: Facts) -> Iterator[str]:
    """What the columns of the tables mean."""
    first, second = facts["first"], facts["second"]
    yield (
        f"Difference: {first} minus {second}, on the same rows. Interval: 95 %, rows drawn {facts['draws']:,} times "
        "with replacement, the same for both. It says how much the choice of rows matters, not the choice of a seed "
        "in training."
    )
    if any(found["answers"] for found in facts["data"].values()):
        yield "In answers, what the other answer does not have is underlined and in square brackets."


def head() -> list[str]:
    return ["figure", "first", "second", "difference", "95 % interval", "told apart"]


def lines(found: Facts) -> list[list[str]]:
    """A line for each figure of a file."""
    return [
        [
            name.replace("_", " "),
            decimals(one["first"], 4),
            decimals(one["second"], 4),
            NOTHING if one["difference"] is None else f"{one['difference']:+.4f}",
            NOTHING if one["low"] is None else f"{one['low']:+.4f} to {one['high']:+.4f}",
            NOTHING if one["low"] is None else "yes" if one["tells_apart"] else "no",
        ]
        for name, one in found["figures"].items()
    ]


def remarks(found: Facts) -> Iterator[str]:
    """What a reader of the figures has to know."""
    counted = found["counted"][0]
    yield f"{count(found['rows'], 'row')} of {found['file']}, {count(counted, found['unit'])}"
    if found["left_out"]:
        yield f"{count(found['left_out'], 'row')} left out: only one of the two could be asked"
    if not found["same_tokens"]:
        words = "The two read these rows as different tokens"
        dashes = any(one["difference"] is None for one in found["figures"].values())
        yield words + (": losses of a token are not compared" if dashes else "")
    if found["rows"] < 2:
        yield "One row gives no interval"


def _file(name: str, found: Facts, facts: Facts) -> Iterator[Html]:
    yield element("h2", name)
    for words in remarks(found):
        yield element("p", words)
    titles = head()
    titles[1:3] = [facts["first"], facts["second"]]
    yield wide_table(titles, lines(found))
    if "judge" in found:
        yield element("h3", "Judge")
        yield bullets(found["judge"]["said"])
    answers = found["answers"]
    if not answers:
        return
    yield element("h3", "Answers")
    yield element("p", tally(answers, facts["first"], facts["second"]))
    shown = chosen(answers)
    if len(shown) < len(answers):
        yield element("p", f"The first {len(shown):,} are shown, those that differ before those that do not.")
    for answer in shown:
        yield _answer(answer, facts["first"], facts["second"])


def tally(answers: Sequence[Facts], first: str, second: str) -> str:
    """`8 rows answered, 3 by both alike. As expected: both 1, only first 2, only second 0, neither 5.`"""
    kinds = [(answer["first_match"], answer["second_match"]) for answer in answers]
    same = sum(answer["first"] == answer["second"] for answer in answers)
    expected = [
        f"both {kinds.count((True, True)):,}",
        f"only {first} {kinds.count((True, False)):,}",
        f"only {second} {kinds.count((False, True)):,}",
        f"neither {kinds.count((False, False)):,}",
    ]
    return f"{count(len(answers), 'row')} answered, {same:,} by both alike. As expected: {', '.join(expected)}."


def chosen(answers: Sequence[Facts]) -> list[Facts]:
    """At most ANSWERS_SHOWN: those that differ first, each kind in the order of the rows."""
    return sorted(answers, key=lambda answer: answer["first"] == answer["second"])[:ANSWERS_SHOWN]


def verdict(answer: Facts, first: str, second: str) -> str:
    """How an answer went, in words."""
    if answer["first"] == answer["second"]:
        return "the same answer, as expected" if answer["first_match"] else "the same answer, not as expected"
    if answer["first_match"] or answer["second_match"]:
        return f"only {first if answer['first_match'] else second} as expected"
    return "different answers, neither as expected"


def _answer(answer: Facts, first: str, second: str) -> Html:
    a, b = marked(answer["first"], answer["second"])
    judged = [element("p", f"Judge: {answer['judged']}")] if "judged" in answer else []
    return details(
        f"{answer['row']}: {verdict(answer, first, second)}",
        element("h4", "Prompt"),
        element("pre", cut(answer["prompt"])),
        element("h4", "Expected"),
        element("pre", answer["expected"] or "(empty)"),
        beside(_text(first, a), _text(second, b)),
        *judged,
        is_open=answer["first"] != answer["second"],
    )


def cut(text: str) -> str:
    """The end of a long prompt, which is what was asked last."""
    return text if len(text) <= PROMPT_SHOWN else f"… ({len(text):,} characters)\n{text[-PROMPT_SHOWN:]}"


def _text(name: str, parts: Sequence[Part]) -> Html:
    words = [element("mark", text) if own else text for text, own in parts if text]
    return element("section", element("h4", name), element("pre", *(words or ["(empty)"])))

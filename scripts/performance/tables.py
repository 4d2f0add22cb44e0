"""Medians, spreads and Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

UNEQUAL = 1.25


def spread(values: Sequence[float], form: Callable[[float], str] = "{:.2f}".format) -> str:
    """The median with the least and the largest: "3.10 (2.95..3.30)"; a single value alone; "-" for none."""
    if not values:
        return "-"
    middle = form(median(values))
    return middle if len(values) == 1 else f"{middle} ({form(min(values))}..{form(max(values))})"


def ratio(values: Sequence[float], to: Sequence[float]) -> str:
    """Quotient of the medians."""
    return f"{median(values) / median(to):.2f}" if values and to and median(to) else "-"


def count(number: int, word: str) -> str:
    """ "1 round", "3 rounds"."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def uneven(times: Mapping[str, Sequence[float]]) -> list[str]:
    """Who took so unequal times for equal work that something else must have been on the machine."""
    return [name for name, found in times.items() if found and max(found) > UNEQUAL * min(found)]


def noisy(times: Mapping[str, Sequence[float]], rounds: int) -> str:
    """What must be said of times before they are compared: an empty text, or a paragraph."""
    said = []
    if names := uneven(times):
        said.append(f"Other work was on the machine: equal work took unequal time ({'; '.join(names)}).")
    if rounds == 1:
        said.append("With a single round the medians hold all that differs from process to process.")
    return f"\n**Noise:** {' '.join(said)} Differences of time within such a spread mean nothing." if said else ""


def whole(value: float) -> str:
    return f"{value:,.0f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, the others right."""
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)

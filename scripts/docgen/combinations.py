"""docs/combinations.md: which words of `adapter.method` go together, derived from what they declare."""

from __future__ import annotations

from collections import defaultdict

from lrft import registry
from lrft.registry import MethodCard


def page() -> str:
    """The whole page: methods against parts, parts against parts, and every reason."""
    cards = registry.methods()
    builders = [card for card in cards.values() if card.builds]
    parts = [card for card in cards.values() if not card.builds]
    return "\n".join(
        [
            "# Combinations",
            "",
            "Generated from the declarations in `lrft/methods`: slots with one owner each, properties that one entry",
            "gives and another needs. A recipe that names a combination marked x is refused before anything is loaded,",
            "with the reason below. Two methods never go together.",
            "",
            "## Methods and parts",
            "",
            *matrix(builders, parts),
            "",
            "## Parts and parts",
            "",
            "Over the method that the first of both works on, most often lora.",
            "",
            *matrix(parts, parts),
            "",
            "## Reasons",
            "",
            *reasons([*builders, *parts], parts),
            "",
            "## Quantised bases",
            "",
            "Everything else goes over a base in nf4, fp4, int8 or fp8.",
            "",
            *over_quantized(list(cards.values())),
            "",
        ]
    )


def matrix(rows: list[MethodCard], columns: list[MethodCard]) -> list[str]:
    """A table with x where a pair is refused."""
    lines = ["| | " + " | ".join(f"`{card.name}`" for card in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in rows:
        marks = ("" if row is column else "x" if refusals(row, column) else "·" for column in columns)
        lines.append(f"| `{row.name}` | " + " | ".join(marks) + " |")
    return lines


def reasons(rows: list[MethodCard], columns: list[MethodCard]) -> list[str]:
    """One line for each word and reason, with all the words that it is refused beside."""
    lines = []
    for row in rows:
        found: dict[str, list[str]] = defaultdict(list)
        for column in columns:
            for conflict in refusals(row, column) if row is not column else ():
                found[meaning(conflict, row, column)].append(column.name)
        for text, others in found.items():
            lines.append(f"- `{row.name}` and {', '.join(f'`{other}`' for other in others)}: {text}")
    return lines


def over_quantized(cards: list[MethodCard]) -> list[str]:
    """One line for each word that is refused over a quantised base, itself or by the method that it works on."""
    lines = []
    for card in cards:
        for conflict in registry.conflicts([card.name], dropout=0.0, alpha_given=False, quantized=True):
            if conflict.about == registry.QUANTIZED:
                lines.append(f"- `{card.name}`: {conflict.text}")
    return lines


def refusals(one: MethodCard, other: MethodCard) -> list[registry.Conflict]:
    return registry.conflicts([one.name, other.name], dropout=0.0, alpha_given=False)


def meaning(conflict: registry.Conflict, one: MethodCard, other: MethodCard) -> str:
    """What a conflict is about, without the names."""
    if conflict.about in one.slots and conflict.about in other.slots:
        return f"both {registry.SLOTS[conflict.about]}"
    if conflict.about in registry.SLOTS and conflict.about in {*one.conflicts, *other.conflicts}:
        return f"nobody beside the one may {registry.SLOTS[conflict.about]}, as the other does"
    return f"one needs {registry.PROPERTIES[conflict.about][0]}"

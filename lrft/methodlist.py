"""`lrft methods` and docs/methods.md, from the declarations in the method files."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from lrft import catalog
from lrft.catalog import MethodCard
from lrft.errors import UsageError, nearest

# The example by which trained parameters are shown: one square layer of a usual width.
EXAMPLE = "d outputs, k inputs, r the rank"


def render(action: str | None, name: str | None, *, kind: str | None, as_json: bool) -> str:
    """The text of `lrft methods [show NAME]`. Raises UsageError for a name or kind that does not exist."""
    cards = catalog.methods()
    if action is None:
        chosen = of_kind(cards, kind)
        return as_text(chosen, as_json, table)
    if action != "show":
        raise UsageError(f"lrft methods {action}: did you mean `lrft methods show {action}`?")
    if name is None:
        raise UsageError("lrft methods show: say which, one of " + ", ".join(cards))
    if name not in cards:
        close = nearest(name, cards)
        raise UsageError(f"there is no method {name}", f"Did you mean {close[0]}?" if close else "See `lrft methods`.")
    return as_text([cards[name]], as_json, lambda found: card(found[0], cards))


def of_kind(cards: dict[str, MethodCard], kind: str | None) -> list[MethodCard]:
    kinds = sorted({c.kind for c in cards.values()})
    if kind is not None and kind not in kinds:
        raise UsageError(f"--kind: {kind} is none of {', '.join(kinds)}")
    return [c for c in cards.values() if kind in (None, c.kind)]


def as_text(cards: list[MethodCard], as_json: bool, write: Any) -> str:
    if not as_json:
        return str(write(cards))
    return json.dumps([to_dict(c) for c in cards], indent=1, ensure_ascii=False) + "\n"


def to_dict(card: MethodCard) -> dict[str, Any]:
    """A card as JSON values: where it stands in the source does not belong to it."""
    facts = asdict(card)
    for inside in ("file", "class_name", "module"):
        facts.pop(inside)
    facts["options"] = {k.name: {"default": k.default, "help": k.help} for k in card.knobs}
    facts.pop("knobs")
    return facts


def table(cards: list[MethodCard]) -> str:
    """One line per method."""
    width = max(len(c.name) for c in cards)
    kinds = max(len(c.kind) for c in cards)
    lines = [f"{c.name:<{width}}  {c.kind:<{kinds}}  {c.paper:<16}  {c.equation}" for c in cards]
    return "\n".join([*lines, "", f"{len(cards)} methods. lrft methods show NAME tells more.", ""])


def card(found: MethodCard, cards: dict[str, MethodCard]) -> str:
    """Everything about one method."""
    lines = [f"{found.name}   {found.kind}   {found.paper}", "", found.summary, ""]
    lines += _facts(found)
    if found.knobs:
        lines += ["", "options"]
        lines += [f"  {knob.name} = {knob.default!r}   {knob.help}" for knob in found.knobs]
    lines += [
        "",
        f"recipe     method: {found.name}" if found.builds else f"recipe     method: [lora, {found.name}]",
    ]
    refused = excluded(found, cards)
    if refused:
        lines += ["", "not together with", *(f"  {sentence}" for sentence in refused)]
    return "\n".join(lines) + "\n"


def _facts(found: MethodCard) -> list[str]:
    facts = {
        "equation": found.equation,
        "trains": f"{found.parameters}   ({EXAMPLE})" if found.builds else found.parameters,
        "becomes": found.exports,
        "evidence": found.evidence,
    }
    return [f"{label:<10} {text}" for label, text in facts.items() if text]


def excluded(found: MethodCard, cards: dict[str, MethodCard]) -> list[str]:
    """Why each other method is refused beside this one, derived from the declarations."""
    sentences = []
    for other in cards.values():
        if other.name == found.name:
            continue
        conflicts = catalog.conflicts([found.name, other.name], dropout=0.0, alpha_given=False)
        sentences += [f"{other.name}: {sentence}" for _, sentence in conflicts]
    return sentences


def markdown() -> str:
    """docs/methods.md."""
    rows = [
        f"| `{c.name}` | {c.kind} | {c.paper} | {c.equation} | {c.parameters} | {c.exports} | {c.evidence} |"
        for c in catalog.methods().values()
    ]
    head = [
        "# Methods",
        "",
        "Generated from the declarations in `lrft/methods`. W is (d, k), A (r, k), B (d, r), r the recipe's rank.",
        "Any number of parts combine with one parametrization: `method: [lora, rslora, lora+]`.",
        "`lrft methods show NAME` prints the options and what a method cannot be combined with.",
        "",
        "| name | kind | paper | equation | trained numbers per layer | becomes | evidence |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *(row.replace("|W + dW|", "&#124;W + dW&#124;") for row in rows), ""])

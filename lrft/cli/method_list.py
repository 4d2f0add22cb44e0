"""The texts of `lrft methods` and of docs/methods.md, from the declarations in the method files."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lrft import registry
from lrft.errors import UsageError, nearest
from lrft.registry import MethodCard

# The example by which trained parameters are shown: one square layer of a usual width.
EXAMPLE = "d outputs, k inputs, r the rank"


def render(action: str | None, name: str | None, *, kind: str | None, as_json: bool, width: int = 80) -> str:
    """The text of `lrft methods [show NAME]`; the list is at most `width` columns wide.

    Raises UsageError for a name or kind that does not exist.
    """
    cards = registry.methods()
    if action is None:
        chosen = of_kind(cards, kind)
        return as_text(chosen, as_json, lambda found: table(found, width))
    if action != "show":
        raise UsageError(f"unknown action of lrft methods: {action}", f"Did you mean lrft methods show {action}?")
    if name is None:
        raise UsageError("lrft methods show requires a method name", f"There are {', '.join(cards)}.")
    if name in registry.PRESETS:
        return preset_json(name) if as_json else preset_card(name)
    if name not in cards:
        close = nearest(name, [*cards, *registry.PRESETS])
        raise UsageError(f"unknown method {name}", f"Did you mean {close[0]}?" if close else "See `lrft methods`.")
    return as_text([cards[name]], as_json, lambda found: card(found[0], cards))


def of_kind(cards: Mapping[str, MethodCard], kind: str | None) -> list[MethodCard]:
    kinds = sorted({c.kind for c in cards.values()})
    if kind is not None and kind not in kinds:
        raise UsageError(f"--kind must be one of {', '.join(kinds)} (got {kind})")
    return [c for c in cards.values() if kind in (None, c.kind)]


def as_text(cards: list[MethodCard], as_json: bool, write: Any) -> str:
    if not as_json:
        return str(write(cards))
    return json.dumps([to_dict(c) for c in cards], indent=1, ensure_ascii=False) + "\n"


def preset_card(name: str) -> str:
    """Everything about one preset."""
    preset = registry.PRESETS[name]
    facts = f"rate       {rate_line(name)}\nrecipe     method: {preset.written}\n"
    return f"{name}   preset   {preset.paper}\n\n{preset.summary}\n\n{facts}"


def preset_json(name: str) -> str:
    preset = registry.PRESETS[name]
    rate = registry.default_rate([name])
    facts: dict[str, Any] = {"name": name, "kind": "preset", "paper": preset.paper, "summary": preset.summary}
    facts |= {"learning_rate": rate.value, "rate_source": rate.source}
    return json.dumps([{**facts, "method": [dict([entry]) for entry in preset.entries]}], indent=1) + "\n"


def to_dict(card: MethodCard) -> dict[str, Any]:
    """A card as JSON values: where it stands in the source does not belong to it."""
    facts = asdict(card)
    for inside in ("file", "class_name", "module", "facts"):
        facts.pop(inside)
    facts["options"] = {k.name: {"default": k.default, "help": k.help} for k in card.knobs}
    facts.pop("knobs")
    rate = registry.default_rate([card.name])
    return facts | {"learning_rate": rate.value, "rate_source": rate.source}


def rate_line(name: str) -> str:
    """`0.005   docs/benchmark.md`: the default learning rate of a recipe with this method alone."""
    return f"{rate_of(name)}   {rate_origin(name)}"


def rate_of(name: str) -> str:
    return f"{registry.default_rate([name]).value:g}"


def rate_origin(name: str) -> str:
    """Where that number is from, and whose it is when the entry declares none itself."""
    rate = registry.default_rate([name])
    return rate.source if rate.owner == name else f"default of {rate.owner}"


def table(cards: list[MethodCard], width: int) -> str:
    """The methods by kind, the largest kind first, each with its summary and paper; then the presets."""
    kinds: dict[str, dict[str, str]] = {}
    for one in cards:
        parts = (one.summary, one.paper.strip("-"), f"({one.package})" if one.package else "")
        kinds.setdefault(one.kind, {})[one.name] = " ".join(part for part in parts if part)
    ordered = dict(sorted(kinds.items(), key=lambda kind: -len(kind[1])))
    ordered["presets"] = {name: f"{preset.summary} {preset.paper}" for name, preset in registry.PRESETS.items()}
    indent = 4 + max(len(name) for named in ordered.values() for name in named)
    lines = []
    for kind, named in ordered.items():
        lines += [kind, *(line for name, text in named.items() for line in hanging(name, text, indent, width)), ""]
    foot = "Combine methods with a list, e.g. method: [pissa, rslora, lora+]. Details: lrft methods show NAME"
    return "\n".join([*lines, *textwrap.wrap(foot, width), ""])


def hanging(name: str, text: str, indent: int, width: int) -> list[str]:
    """`text` beside `name`, wrapped at `width` columns."""
    return textwrap.wrap(text, width, initial_indent=f"  {name}".ljust(indent), subsequent_indent=" " * indent)


def card(found: MethodCard, cards: Mapping[str, MethodCard]) -> str:
    """Everything about one method."""
    lines = [f"{found.name}   {found.kind}   {found.paper}", "", found.summary, ""]
    lines += _facts(found)
    if found.knobs:
        lines += ["", "options"]
        lines += [f"  {knob.name} = {knob.default!r}   {knob.help}" for knob in found.knobs]
    lines += [
        "",
        f"recipe     method: {found.name}" if found.builds else f"recipe     method: [{found.on}, {found.name}]",
    ]
    refused = excluded(found, cards)
    if refused:
        lines += ["", "conflicts with", *(f"  {sentence}" for sentence in refused)]
    return "\n".join(lines) + "\n"


def _facts(found: MethodCard) -> list[str]:
    facts = {
        "equation": found.equation,
        "trains": f"{found.parameters}   ({EXAMPLE})" if found.builds else found.parameters,
        "exports to": found.exports,
        "rate": rate_line(found.name),
        "evidence": found.evidence,
        "package": found.package,
    }
    return [f"{label:<10} {text}" for label, text in facts.items() if text]


def excluded(found: MethodCard, cards: Mapping[str, MethodCard]) -> list[str]:
    """Why each other method, or a quantised base, is refused beside this one, derived from the declarations."""
    alone = registry.conflicts([found.name], dropout=0.0, alpha_given=False, quantized=True)
    sentences = [f"a quantised base: {conflict.text}" for conflict in alone if conflict.about == registry.QUANTIZED]
    for other in cards.values():
        if other.name == found.name:
            continue
        conflicts = registry.conflicts([found.name, other.name], dropout=0.0, alpha_given=False)
        sentences += [f"{other.name}: {conflict.text}" for conflict in conflicts]
    return sentences


def markdown() -> str:
    """docs/methods.md."""
    rows = [
        cells(f"`{c.name}`", c.kind, c.paper, c.equation, c.parameters, c.exports, rate_of(c.name), c.evidence)
        for c in registry.methods().values()
    ]
    head = [
        "# Methods",
        "",
        "Generated from the declarations in `lrft/methods`. W is (d, k), A (r, k), B (d, r), r the recipe's rank.",
        "One parametrization can be combined with any number of other methods: `method: [lora, rslora, lora+]`.",
        "`lrft methods show NAME` prints a method's options and conflicts. A search over whole runs is none:",
        "[compare.md](compare.md#ranks-by-layer) has RankAdaptor's (arXiv 2406.15734).",
        "[adapters.md](adapters.md#types-of-peft) says which of PEFT's types are here, and why prompt methods are not.",
        "",
        *kinds(),
        "",
        "The rate is `training.learning_rate` when the recipe gives none. Of several entries the lowest that a part or",
        "preset declares counts, else that of the method that builds; where each is from stands at the end.",
        "",
        "| name | kind | paper | equation | trainable parameters per layer | exports to | rate | evidence |",
        "|---|---|---|---|---|---|---|---|",
    ]
    presets = [
        cells(f"`{name}`", preset.paper, preset.summary, f"`{preset.written}`", rate_of(name))
        for name, preset in registry.PRESETS.items()
    ]
    tail = [
        "",
        "Presets: short names for combinations of methods with fixed options.",
        "",
        "| name | paper | description | equivalent recipe | rate |",
        "|---|---|---|---|---|",
    ]
    sources = [
        cells(f"`{name}`", rate_of(name), rate_origin(name))
        for name in (*registry.methods(), *registry.PRESETS)
        if registry.default_rate([name]).owner == name
    ]
    rates = ["", "Sources of the default learning rates:", "", "| name | rate | from |", "|---|---:|---|"]
    return "\n".join([*head, *rows, *tail, *presets, *rates, *sources, ""])


def kinds() -> list[str]:
    """A table of the names of each kind, the largest kind first."""
    named: dict[str, list[str]] = {}
    for card in registry.methods().values():
        named.setdefault(card.kind, []).append(f"`{card.name}`")
    named["preset"] = [f"`{name}`" for name in registry.PRESETS]
    ordered = sorted(named.items(), key=lambda one: -len(one[1]))
    return ["| kind | names |", "|---|---|", *(f"| {kind} | {' '.join(names)} |" for kind, names in ordered)]


def cells(*texts: str) -> str:
    """A row of a table. A bar inside a formula must not end its cell."""
    return f"| {' | '.join(text.replace('|', '&#124;') for text in texts)} |"

"""How methods combine: one method builds, a slot has one owner, every requirement is met."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lrft.registry.methods import DEFAULT_METHOD, FOLDER, NO_DROPOUT, PROPERTIES, SLOTS, VALIDATION, MethodCard, methods

QUANTIZED = "quantization"


def compose(entries: Sequence[str], folder: Path = FOLDER) -> tuple[str, ...]:
    """The names with the one that builds first; when none builds, the one that some entry works on is added."""
    cards = methods(folder)
    builders = [name for name in entries if cards[name].builds]
    if not builders:
        wanted = [cards[name].on for name in entries if cards[name].on != DEFAULT_METHOD]
        builders = [*wanted, DEFAULT_METHOD][:1]
    return (*builders, *(name for name in entries if not cards[name].builds))


@dataclass(frozen=True)
class Conflict:
    """A conflict between entries, or of an entry with the recipe."""

    index: int | None
    """of the entry to be blamed, None for the whole list"""
    about: str
    """the slot or property, "twice", NO_DROPOUT, VALIDATION or QUANTIZED"""
    text: str


def over_quantized(name: str, why: str) -> str:
    """What to say of an entry that makes no sense over a quantised base."""
    return f"{name} {why}: set model.quantization: none, or use a low-rank method such as lora"


def conflicts(
    names: Sequence[str],
    *,
    dropout: float,
    alpha_given: bool,
    validation: bool = True,
    quantized: bool = False,
    folder: Path = FOLDER,
) -> list[Conflict]:
    """Conflicts among these entries, and with a recipe's dropout, alpha, validation rows and base."""
    cards = methods(folder)
    first = {name: names.index(name) for name in set(names)}
    found = [Conflict(i, "twice", f"{name} is listed twice") for i, name in enumerate(names) if i != first[name]]
    composed = compose(list(dict.fromkeys(names)), folder)
    builders = [name for name in composed if cards[name].builds]
    for other in builders[1:]:
        found.append(Conflict(first[other], "update", f"{builders[0]} and {other} both build the update: keep one"))
    found += _slots_twice(names, cards)
    for i, name in enumerate(names):
        for other in names:
            both = [slot for slot in cards[name].conflicts if slot in cards[other].slots and other != name]
            for slot in both:
                text = f"{name} conflicts with {other}: both would {SLOTS[slot]}"
                found.append(Conflict(i, slot, text))
    builder = builders[0]
    if builder not in names:
        whose = next((name for name in names if cards[name].on == builder), None)
        builder = f"{builder}, the default method for {whose}," if whose and builder != DEFAULT_METHOD else builder
    given = {gift for name in composed for gift in cards[name].provides}
    for name in dict.fromkeys([*names, *composed]):
        i = first.get(name, 0)  # who brought along a method is to be blamed for it
        if quantized and cards[name].quantization_conflict:
            who = builder if name == builders[0] else name
            found.append(Conflict(i, QUANTIZED, over_quantized(who, cards[name].quantization_conflict)))
        for need in cards[name].requires:
            if need == NO_DROPOUT and dropout > 0:
                found.append(Conflict(i, need, f"{name} requires adapter.dropout: 0, got {dropout:g}"))
            elif need == VALIDATION and not validation:
                found.append(Conflict(i, need, f"{name} requires validation rows; data.validation is none"))
            elif need in PROPERTIES and need not in given:
                wanted, lacking = PROPERTIES[need]
                found.append(Conflict(i, need, f"{name} requires {wanted}; {builder} has no {lacking}"))
    if alpha_given and "scale" not in given:
        found.append(Conflict(None, "scale", f"{builders[0]} has no scaling factor alpha/r: remove alpha and scale"))
    return found


def _slots_twice(names: Sequence[str], cards: Mapping[str, MethodCard]) -> Iterator[Conflict]:
    owners: dict[str, str] = {}
    for i, name in enumerate(names):
        for slot in cards[name].slots:
            owner = owners.setdefault(slot, name)
            if owner != name and not (cards[owner].builds and cards[name].builds):
                yield Conflict(i, slot, f"{owner} and {name} both {SLOTS[slot]}: keep one")

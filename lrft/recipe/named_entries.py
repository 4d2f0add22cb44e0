"""Entries {name, options} of a registry: the name exists, and its options are whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from lrft import registry
from lrft.errors import nearest
from lrft.recipe import messages
from lrft.recipe.foreign_keys import VALUES
from lrft.recipe.nodes import DEFAULT, Node, plain
from lrft.recipe.problems import Problems


def registered(entry: Node, key: str, kind: str, problems: Problems) -> Node:
    """An entry {name, options} of a registry, with all its options. Adds what is wrong with it."""
    node = entry.child("name")
    if node is None:
        return entry
    if kind == "metrics" and isinstance(node.value, str) and node.value.startswith(registry.PYTHON):
        path, _, function = node.value.removeprefix(registry.PYTHON).rpartition(":")
        if not path or not function.isidentifier():
            problems.add(node.place, f"{key}: expected python:FILE:FUNCTION; got '{node.value}'")
        return entry
    # What is always on cannot be asked for.
    cards = {name: card for name, card in registry.declared(kind).items() if not card.facts.get("always", False)}
    if not isinstance(node.value, str) or node.value not in cards:
        close = nearest(str(node.value).lower(), list(cards))
        theirs = VALUES.get(key, {}).get(node.value) if isinstance(node.value, str) else None
        hint = f". {theirs}" if theirs else f". Did you mean {close[0]}?" if close else ""
        quoted = isinstance(node.value, str) and node.reference is None
        found = f"'{node.value}'" if quoted else messages.got(node, node.value)
        problems.add(node.place, f"{key}: expected {one_of(cards)}; got {found}{hint}")
        return entry
    return with_options(entry, key, cards[node.value], problems)


def one_of(names: Iterable[str]) -> str:
    *first, last = sorted(names) or ["the name of an installed package's"]
    return f"{', '.join(first)} or {last}" if first else last


def with_options(entry: Node, key: str, card: registry.Declaration, problems: Problems) -> Node:
    """The entry with every option of `card`; values that were not given come from the declaration."""
    given = entry.value["options"]
    try:
        values = card.validate(plain(given))
    except ValidationError as error:
        messages.add_option_errors(error, key, card.name, given, [knob.name for knob in card.knobs], problems)
        return entry
    _together(entry, key, card, values, problems)
    nodes = {key: replace(given.child(key) or Node(None, DEFAULT), value=value) for key, value in values.items()}
    keys = {key: given.keys.get(key, DEFAULT) for key in nodes}
    return entry.with_child("options", Node(nodes, given.place, keys))


def _together(entry: Node, key: str, card: registry.Declaration, values: Mapping[str, Any], problems: Problems) -> None:
    """Adds what is wrong with options that are right by themselves: one that lacks, or that does nothing."""
    given = entry.value["options"]
    for option in card.required:
        if not values[option]:
            place = entry.place if given.child(option) is None else given.child(option).place
            problems.add(place, f"{key}: {card.name} requires {option}, as in {{{card.name}: {{{option}: ...}}}}")
    for option, (other, useful) in card.only_with.items():
        node, default = given.child(option), next(knob.default for knob in card.knobs if knob.name == option)
        if node is not None and values[option] != default and values[other] not in useful:
            wanted = " or ".join(map(str, useful))
            problems.add(
                node.place,
                f"{key}: {card.name}.{option} is only for {other}: {wanted}; {other} is {values[other]}. Remove it, "
                f"or change that",
            )

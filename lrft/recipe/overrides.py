"""Arguments over a recipe: key=value, ~key. The value is YAML; keys are dotted, items of lists by number."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from lrft.recipe.nodes import Node, Path, Place, Source, dotted, mapping, merge
from lrft.recipe.normalize import expand
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.yaml_parser import MAX_DEPTH, check_text, parse

FIRST_ORDER = 1_000_000  # arguments are sorted behind every file
_KEY = re.compile(r"[^\s.=~]+(\.[^.=]+)*")


def apply(root: Node, overrides: Iterable[str], problems: Problems) -> Node:
    """The tree after each argument in turn. What cannot be done is a problem at "argument N", from 1."""
    for number, text in enumerate(overrides, start=1):
        place = Place(Source(f"argument {number}", FIRST_ORDER + number))
        try:
            root = _remove(root, text[1:], place) if text.startswith("~") else _set(root, text, place, problems)
        except Refused as refused:
            problems.add(place, refused.text)
    return root


def _path(key: str, text: str, place: Place) -> Path:
    if not _KEY.fullmatch(key):
        raise Refused(place, f"'{text[:60]}' is not an override: write key=value, or ~key to remove a key")
    parts = key.split(".")
    if parts[0] == "extends" or len(parts) > MAX_DEPTH:
        raise Refused(place, "extends belongs in a file" if parts[0] == "extends" else "the key is too long")
    return tuple(int(part) if re.fullmatch(r"[0-9]{1,6}", part) else part for part in parts)


def set_key(root: Node, key: str, value: Node, place: Place) -> Node:
    """The tree with `value` merged in at a dotted key that stands at `place`. Raises Refused."""
    return expand(_put(root, (), _path(key, key, place), value, place))


def _set(root: Node, text: str, place: Place, problems: Problems) -> Node:
    key, equals, written = text.partition("=")
    path = _path(key if equals else "", text, place)
    value = Node(None, place, written="")
    if written.strip():
        check_text(written, place)
        value = parse(written, place.source, problems)
    return expand(_put(root, (), path, value, place))


def _put(node: Node, done: Path, path: Path, value: Node, place: Place) -> Node:
    """`node` with `value` merged in at `path`; maps on the way are made when they are missing."""
    if not path:
        short = expand(mapping({str(done[0]): value}, place)).child(str(done[0])) if len(done) == 1 else value
        return merge(node, short or value, done)
    part, rest = path[0], path[1:]
    if isinstance(node.value, list):
        index = _index(node, done, part, place)
        items = list(node.value)
        items[index] = _put(items[index], (*done, index), rest, value, place)
        return replace(node, value=items)
    if node.value == part and rest:  # `objective: dpo` with objective.dpo.beta=0.2: a name gets an option
        node = mapping({str(part): mapping({}, node.place)}, node.place)
    if node.value is not None and not isinstance(node.value, dict):
        raise Refused(place, f"{dotted((*done, part))} cannot be set: {dotted(done)} is one value, not a map")
    node = node if node.value is not None else mapping({}, place)
    below = node.child(str(part)) or Node(None, place)
    return node.with_child(str(part), _put(below, (*done, part), rest, value, place), place)


def _index(node: Node, done: Path, part: str | int, place: Place) -> int:
    count = len(node.value)
    if not isinstance(part, int) or part >= count:
        last = f", 0 to {count - 1}" if count > 1 else ""
        first = f". For its first: {dotted((*done, 0, part))}" if isinstance(part, str) and count else ""
        raise Refused(place, f"{dotted(done)} is a list of {count}{last}: it has no item {part}{first}")
    return part


def _remove(root: Node, key: str, place: Place) -> Node:
    path = _path(key, f"~{key}", place)
    found = root.at(_existing(root, path))
    if found is None:
        raise Refused(place, f"{key} is not set, so it cannot be removed")
    return _without(root, path)


def _existing(root: Node, path: Path) -> Path:
    """`path` with numbers as text where they are keys of a map."""
    fixed: Path = ()
    for part in path:
        parent = root.at(fixed)
        fixed = (*fixed, part if parent is not None and isinstance(parent.value, list) else str(part))
    return fixed


def _without(node: Node, path: Path) -> Node:
    part, rest = path[0], path[1:]
    if isinstance(node.value, list):
        items = list(node.value)
        index = int(part)
        items[index : index + 1] = [_without(items[index], rest)] if rest else []
        return replace(node, value=items)
    child = node.child(str(part))
    return node.with_child(str(part), _without(child, rest) if rest and child is not None else None)

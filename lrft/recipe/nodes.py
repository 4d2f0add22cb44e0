"""A recipe as a tree of values that know where they were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Source:
    """Where text came from. `order` sorts problems; `via` names the line whose `extends` led here."""

    name: str
    order: int = 0
    via: str | None = None


@dataclass(frozen=True)
class Place:
    """Line and column count from 1; line 0: the source has no lines (an argument, a Python dict)."""

    source: Source
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source.name}:{self.line}:{self.column}" if self.line else self.source.name

    @property
    def rank(self) -> tuple[int, int, int]:
        """What problems are sorted by."""
        return self.source.order, self.line, self.column

    @property
    def suffix(self) -> str:
        """The end of a problem's text: how the file was reached."""
        return f" (from extends in {self.source.via})" if self.source.via else ""


DEFAULT = Place(Source("default"))


@dataclass(frozen=True)
class Node:
    """A value: dict or list of Node, str, int, float, bool or None. Never changed; edits make new nodes."""

    value: Any
    place: Place
    keys: Mapping[str, Place] = field(default_factory=dict)
    """position of each key of a map"""
    written: str | None = None
    """a scalar as written, e.g. 1e-4"""
    reference: str | None = None
    """the text before ${NAME} was replaced by the environment's value"""

    def at(self, path: Path) -> Node | None:
        """The node at `path`, or None."""
        node: Node | None = self
        for part in path:
            node = node.child(part) if node is not None else None
        return node

    def child(self, part: str | int) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(part)
        if isinstance(self.value, list) and isinstance(part, int) and 0 <= part < len(self.value):
            child: Node = self.value[part]
            return child
        return None

    def items(self) -> Iterator[tuple[str | int, Node]]:
        """Children by key or index; nothing for a scalar."""
        if isinstance(self.value, dict):
            yield from self.value.items()
        elif isinstance(self.value, list):
            yield from enumerate(self.value)

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """This node and everything below it."""
        yield path, self
        for key, child in self.items():
            yield from child.walk((*path, key))

    def with_child(self, key: str, child: Node | None, place: Place | None = None) -> Node:
        """This map with `key` set, or without it when `child` is None."""
        value = {k: v for k, v in self.value.items() if k != key or child is not None}
        keys = {k: v for k, v in self.keys.items() if k in value}
        if child is not None:
            value[key] = child
            keys.setdefault(key, place or child.place)
        return replace(self, value=value, keys=keys)


def mapping(children: dict[str, Node], place: Place) -> Node:
    """A map that was not written as one (a short form, an argument): its keys stand where `place` says."""
    return Node(children, place, dict.fromkeys(children, place))


def from_python(value: Any, name: str, order: int = 0) -> Node:
    """A tree from dicts, lists and scalars; the place of each is its dotted name."""
    place = Place(Source(name, order))
    if isinstance(value, Mapping):
        children = {str(key): from_python(child, f"{name}.{key}", order) for key, child in value.items()}
        return Node(children, place, {key: child.place for key, child in children.items()})
    if isinstance(value, list | tuple):
        return Node([from_python(child, f"{name}.{i}", order) for i, child in enumerate(value)], place)
    return Node(value, place)


def plain(node: Node) -> Any:
    """The values alone. Lists become tuples, as the models hold them."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return tuple(plain(child) for child in node.value)
    return node.value


def dotted(path: Path) -> str:
    return ".".join(str(part) for part in path)


def without_null(node: Node) -> Node:
    """null returns a key to its default, as if it had not been written. In a list it stays, to be refused."""
    if isinstance(node.value, dict):
        kept = {key: without_null(child) for key, child in node.value.items() if child.value is not None}
        return replace(node, value=kept)
    if isinstance(node.value, list):
        return replace(node, value=[without_null(child) for child in node.value])
    return node


# A choice with its options, {cosine: {...}}: merging two of them would give two choices at once.
CHOICES: frozenset[Path] = frozenset(
    {("training", "lr_scheduler"), ("training", "optimizer"), ("training", "objective")}
)


def merge(base: Node, top: Node, path: Path = ()) -> Node:
    """`top` over `base`: maps merge deeply, everything else replaces. A value keeps its place."""
    if not (isinstance(base.value, dict) and isinstance(top.value, dict)):
        return top
    if path in CHOICES and set(base.value) != set(top.value):
        return top
    value, keys = dict(base.value), dict(base.keys)
    for key, child in top.value.items():
        below = value.get(key)
        value[key] = child if below is None else merge(below, child, (*path, key))
        keys[key] = top.keys[key]
    return Node(value, top.place, keys)

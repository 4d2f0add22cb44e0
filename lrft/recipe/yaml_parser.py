"""YAML text to a tree. Built from the event stream, so that every limit holds before anything can grow."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path as File
from typing import Any

import yaml
from yaml import events

from lrft.errors import UsageError
from lrft.recipe.nodes import Node, Place, Source
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.yaml_scalars import CONTROL, scalar

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_NODES = 20_000

# What PyYAML says, and what it means to someone who writes a recipe.
_PLAIN_WORDS = (
    ("that cannot start any token", "this character cannot start a value: put the text in quotes"),
    ("mapping values are not allowed", "a second ': ' on this line: put text that holds a colon in quotes"),
    ("could not find expected ':'", "a key without ': ' after it"),
    ("expected <block end>", "the indentation does not match the lines above"),
    ("found undefined alias", "this alias has no anchor"),
    ("while scanning a quoted scalar", "a quotation mark is not closed"),
    ("expected ',' or ']'", "a list in brackets is not closed, or a comma is missing"),
    ("expected ',' or '}'", "a map in braces is not closed, or a comma is missing"),
    ("expected the node content", "a value is missing here, or a bracket is not closed"),
)


def read_bytes(file: File) -> bytes:
    """At most MAX_BYTES + 1 bytes. Raises UsageError when the file cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{file}: there is no such file") from None
    except IsADirectoryError:
        raise UsageError(f"{file} is a folder; a recipe is a YAML file") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def decode(data: bytes, source: Source) -> str:
    """UTF-8 text, a byte order mark removed. Raises Refused."""
    if len(data) > MAX_BYTES:
        raise Refused(Place(source, 1, 1), f"the file is larger than {MAX_BYTES // 1024} KB; a recipe is not")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Refused(Place(source, 1, 1), "the file is UTF-16; save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        raise Refused(_position(before, source), f"the byte 0x{data[error.start]:02x} is not UTF-8") from None
    bad = CONTROL.search(text)
    if bad:
        raise Refused(_position(text[: bad.start()], source), f"the control character {bad[0]!a} is not text")
    return text


def check_text(text: str, place: Place) -> None:
    """Raises Refused for text that YAML cannot hold."""
    bad = CONTROL.search(text)
    if bad or len(text) > MAX_BYTES:
        raise Refused(place, f"the control character {bad[0]!a} is not text" if bad else "the text is too long")


def _position(before: str, source: Source) -> Place:
    lines = before.splitlines(keepends=True) or [""]
    ended = lines[-1].endswith(("\n", "\r"))
    return Place(source, len(lines) + ended, 1 if ended else len(lines[-1]) + 1)


def parse(text: str, source: Source, problems: Problems) -> Node:
    """The tree of one YAML document. Wrong scalars and keys go to `problems`; broken YAML raises Refused."""
    loader = yaml.SafeLoader(text)
    builder = _Builder(source, problems)
    try:
        while loader.check_event():
            builder.take(loader.get_event())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Refused(_place(mark, source), _explain(error, text)) from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # An escape beyond Unicode, a version number of thousands of digits.
        text = "not valid YAML: this escape or number is out of range"
        raise Refused(_place(loader.get_mark(), source), text) from None
    finally:
        loader.dispose()
    if builder.root is None:
        raise Refused(Place(source, 1, 1), "the file is empty")
    return builder.root


def _place(mark: Any, source: Source) -> Place:
    # An argument of the command line is one line: its place is its number.
    if mark is None or source.name.startswith("argument "):
        return Place(source)
    return Place(source, mark.line + 1, mark.column + 1)


def _explain(error: yaml.MarkedYAMLError, text: str) -> str:
    said = f"{error.context or ''} {error.problem or ''}"
    mark = error.problem_mark
    if mark is not None and "cannot start any token" in said and text[mark.index : mark.index + 1] == "\t":
        return "a tab cannot indent YAML: use spaces"
    plain = next((meaning for words, meaning in _PLAIN_WORDS if words in said), None)
    return f"not valid YAML: {plain or error.problem or error.context}"


@dataclass
class _Open:
    """A map or list whose end has not come yet."""

    event: events.NodeEvent
    place: Place
    children: dict[str, Node] | list[Node]
    keys: dict[str, Place] = field(default_factory=dict)
    key: str | None = None
    """a map's key that waits for its value; None when a key comes next"""
    skip: bool = False
    """the key was refused: its value is read and dropped"""
    size: int = 1
    height: int = 1


@dataclass
class _Anchor:
    """A finished anchored value, with what it counts for each time it is used."""

    node: Node
    size: int
    height: int


class _Builder:
    """Events to one Node. No recursion; sizes count what aliases repeat."""

    def __init__(self, source: Source, problems: Problems) -> None:
        self.source = source
        self.problems = problems
        self.root: Node | None = None
        self.stack: list[_Open] = []
        self.anchors: dict[str, _Anchor | None] = {}
        self.documents = 0
        self.total = 0

    def take(self, event: events.Event) -> None:
        place = _place(event.start_mark, self.source)
        if isinstance(event, events.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise Refused(place, "a second document starts here (---); a recipe is one document")
        elif isinstance(event, events.AliasEvent):
            self._alias(event.anchor, place)
        elif isinstance(event, events.ScalarEvent):
            self._open_anchor(event)
            self._refuse_tag(event, place)
            self._count(1, 1, place)
            self._close(event, scalar(event, place, self.problems), 1, 1)
        elif isinstance(event, events.CollectionStartEvent):
            self._open_anchor(event)
            self._refuse_tag(event, place)
            self._count(1, 1, place)
            children: dict[str, Node] | list[Node] = {} if isinstance(event, events.MappingStartEvent) else []
            self.stack.append(_Open(event, place, children))
        elif isinstance(event, events.CollectionEndEvent):
            top = self.stack.pop()
            self._close(top.event, Node(top.children, top.place, top.keys), top.size, top.height)

    def _open_anchor(self, event: events.NodeEvent) -> None:
        if event.anchor is not None:
            self.anchors[event.anchor] = None

    def _refuse_tag(self, event: Any, place: Place) -> None:
        if event.tag is not None:
            raise Refused(place, f"the tag {_short(event.tag)} is not used in recipes; write the value alone")

    def _alias(self, name: str | None, place: Place) -> None:
        if name is None or name not in self.anchors:
            raise Refused(place, f"the alias *{name} has no anchor above")
        anchor = self.anchors[name]
        if anchor is None:
            raise Refused(place, f"the alias *{name} stands inside the value that it names")
        self._count(anchor.size, anchor.height, place)
        self._add(anchor.node, anchor.size, anchor.height)

    def _count(self, size: int, height: int, place: Place) -> None:
        self.total += size
        if len(self.stack) + height > MAX_DEPTH:
            raise Refused(place, f"nested more than {MAX_DEPTH} deep")
        if self.total > MAX_NODES:
            raise Refused(place, f"more than {MAX_NODES} values, aliases counted each time")

    def _close(self, event: events.NodeEvent, node: Node, size: int, height: int) -> None:
        if event.anchor is not None:
            self.anchors[event.anchor] = _Anchor(node, size, height)
        self._add(node, size, height)

    def _add(self, node: Node, size: int, height: int) -> None:
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        top.size += size
        top.height = max(top.height, height + 1)
        if isinstance(top.children, list):
            top.children.append(node)
        elif top.skip:
            top.skip = False
        elif top.key is None:
            top.key = self._key(top, node)
            top.skip = top.key is None
        else:
            top.children[top.key] = node
            top.key = None

    def _key(self, top: _Open, node: Node) -> str | None:
        """The name of a key, or None when it was refused."""
        key = node.value
        if not isinstance(key, str):
            said = node.written if node.written else "a list or map" if isinstance(key, dict | list) else "nothing"
            self.problems.add(node.place, f"a key is a name, got {said}; put it in quotes if it is one")
            return None
        if key == "<<":
            self.problems.add(node.place, "merge keys (<<) are not supported; use extends, or write the keys out")
            return None
        if key in top.keys:
            first, second = top.keys[key], node.place
            lines = f": lines {first.line} and {second.line}" if second.line else ""
            self.problems.add(second, f"{_short(key)} is given twice{lines}")
            return None
        top.keys[key] = node.place
        return key


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."

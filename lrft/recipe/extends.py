"""Recipe files and the files that they extend."""

from __future__ import annotations

import os
from pathlib import Path

from lrft.errors import UsageError
from lrft.recipe import env_vars
from lrft.recipe.nodes import Node, Place, Source, mapping, merge
from lrft.recipe.normalize import expand
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.yaml_parser import decode, parse, read_bytes

MAX_FILES = 16
PACKAGED = "lrft:"


class Files:
    """Reads a file over its bases. One object reads one recipe and numbers its files as they are read."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.count = 0

    def read(self, file: Path, via: str | None = None, above: tuple[str, ...] = ()) -> Node:
        """The tree of `file` merged over what it extends, short forms expanded.

        Raises UsageError when the file cannot be read, Refused when it is not YAML with keys.
        """
        source = Source(str(file), self.count, via)
        self.count += 1
        root = parse(decode(read_bytes(file), source), source, self.problems)
        if root.value is None:
            raise Refused(root.place, "the file is empty")
        if not isinstance(root.value, dict):
            raise Refused(root.place, "expected keys such as `model:` and `data:` at the left margin")
        return self.over_bases(file, root, above)

    def over_bases(self, file: Path, root: Node, above: tuple[str, ...] = ()) -> Node:
        """The keys `root`, written in `file`, merged over what they extend, short forms expanded."""
        extends = root.child("extends")
        root = expand(root.with_child("extends", None))
        if extends is None or extends.value is None:
            return root
        merged = mapping({}, root.place)
        for base in self._bases(file, extends, (*above, os.path.realpath(file))):
            merged = merge(merged, base)
        return merge(merged, root)

    def _bases(self, file: Path, extends: Node, above: tuple[str, ...]) -> list[Node]:
        filled = env_vars.fill(extends, self.problems)
        items = filled.value if isinstance(filled.value, list) else [filled]
        return [base for item in items if (base := self._base(file, item, above)) is not None]

    def _base(self, file: Path, item: Node, above: tuple[str, ...]) -> Node | None:
        """The tree of one base, or None when it is a problem."""
        if item.place in self.problems.refused:
            return None
        if not isinstance(item.value, str) or not item.value:
            self.problems.add(item.place, "extends: expected a path or a list of paths")
        elif item.value.startswith(PACKAGED):
            self.problems.add(
                item.place, f"extends: packaged recipes ({PACKAGED}...) are not supported in this version"
            )
        elif os.path.realpath(file.parent / item.value) in above:
            said = item.reference or item.value
            self.problems.add(item.place, f"extends: {said} extends itself, directly or through others")
        elif self.count >= MAX_FILES:
            self.problems.add(item.place, f"extends: more than {MAX_FILES} files are read")
        else:
            via = _line(item.place)
            try:
                return self.read(Path(os.path.normpath(file.parent / item.value)), via, above)
            except UsageError as error:
                said = f"{item.reference} cannot be read" if item.reference else error.message
                self.problems.add(item.place, f"extends: {said}")
        return None


def _line(place: Place) -> str:
    return f"{place.source.name}:{place.line}"

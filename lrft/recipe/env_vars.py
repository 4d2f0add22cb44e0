"""${NAME} and ${NAME:-default} inside text. The reference is kept: a run's files never hold the value."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from lrft.recipe.nodes import Node
from lrft.recipe.problems import Problems

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


def fill(node: Node, problems: Problems, environ: Mapping[str, str] | None = None) -> Node:
    """The tree with every reference replaced. A missing variable is a problem at its place."""
    environ = os.environ if environ is None else environ
    if isinstance(node.value, dict):
        return replace(node, value={key: fill(child, problems, environ) for key, child in node.value.items()})
    if isinstance(node.value, list):
        return replace(node, value=[fill(child, problems, environ) for child in node.value])
    if not isinstance(node.value, str) or "${" not in node.value:
        return node
    missing = [m[1] for m in _REFERENCE.finditer(node.value) if m[2] is None and m[1] not in environ]
    for name in dict.fromkeys(missing):
        problems.refuse(node.place, f"the environment variable {name} is not set; ${{{name}:-DEFAULT}} gives a default")
    if "${" in _REFERENCE.sub("", node.value):
        problems.refuse(node.place, "write a reference to the environment as ${NAME} or ${NAME:-default}")
    names = {m[1] for m in _REFERENCE.finditer(node.value)}
    for name in sorted(name for name in names if not environ.get(name, "").isprintable()):
        problems.refuse(
            node.place, f"the environment variable {name} holds line breaks or characters that are not text"
        )
    text = _REFERENCE.sub(lambda m: environ.get(m[1], m[2] or ""), node.value)
    return replace(node, value=text, reference=node.value)

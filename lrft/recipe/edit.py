"""Values written into the text of a recipe, which keeps its comments, its order and everything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from lrft.errors import UsageError
from lrft.recipe.dump import inline

SHORT = {"adapter": "method", "model": "name", "data": "train"}
"""section -> what its short form stands for"""


def with_values(text: str, values: Mapping[str, Any]) -> str:
    """`text`, a recipe that can be read, with each value at its dotted key SECTION.KEY.

    Raises UsageError where a key is written in a form that cannot be replaced on its line.
    """
    for key, value in values.items():
        section, name = key.split(".")
        text = _with_value(text, section, name, inline(value))
    return text


def _with_value(text: str, section: str, name: str, value: str) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    key, parent = _child(root, section)
    if key is None or parent is None:
        return text.rstrip("\n") + f"\n{section}:\n  {name}: {value}\n"
    if _is_empty(parent):
        return _behind_line(text, key, f"  {name}: {value}")
    if not isinstance(parent, yaml.MappingNode):
        short, written = SHORT.get(section), _written(text, parent, section)
        new = value if short == name else f"{{{short}: {written}, {name}: {value}}}"
        return _replaced(text, parent, new)
    own_key, own = _child(parent, name)
    if own_key is not None and own is not None:
        if _is_empty(own):
            at = text.index(":", own_key.end_mark.index) + 1
            return f"{text[:at]} {value}{text[at:]}"
        _written(text, own, f"{section}.{name}")
        return _replaced(text, own, value)
    if parent.flow_style:
        at, more = parent.start_mark.index + 1, ", " if parent.value else ""
        return f"{text[:at]}{name}: {value}{more}{text[at:]}"
    # Behind the section's own line: a comment before its first key stays with that key.
    return _behind_line(text, key, f"{' ' * parent.value[0][0].start_mark.column}{name}: {value}")


def _child(parent: Any, name: str) -> tuple[Any, Any]:
    """(key, value) of a map, or two None."""
    return next(((key, value) for key, value in parent.value if key.value == name), (None, None))


def _is_empty(node: Any) -> bool:
    """Whether nothing is written."""
    return bool(node.start_mark.index == node.end_mark.index)


def _written(text: str, node: Any, key: str) -> str:
    """The characters of a value. Raises UsageError for one that is not on one line."""
    written = text[node.start_mark.index : node.end_mark.index]
    if "\n" in written:
        raise UsageError(f"{key} is written on several lines, which are not replaced", "Write the value by hand.")
    return written


def _replaced(text: str, node: Any, new: str) -> str:
    return text[: node.start_mark.index] + new + text[node.end_mark.index :]


def _behind_line(text: str, key: Any, line: str) -> str:
    """A new line behind that of a key."""
    lines = text.splitlines(keepends=True)
    after = key.start_mark.line + 1
    return "".join([*lines[:after], f"{line}\n", *lines[after:]])

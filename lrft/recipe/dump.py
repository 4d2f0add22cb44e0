"""A recipe written out in full, and what differs between two."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from lrft.recipe import nodes
from lrft.recipe.nodes import Source
from lrft.recipe.problems import Problems
from lrft.recipe.schema import CHOICE_OPTIONS, DataEntry, LrScheduler, Named, Recipe
from lrft.recipe.yaml_parser import parse
from lrft.recipe.yaml_scalars import resolve

# Text that needs no quotes even inside brackets, unless YAML would read it as a number, a boolean or null.
_BARE = re.compile(r"[A-Za-z_./][A-Za-z0-9_./+-]*")
_HEADER = "# Every key of the recipe, with the origin of its value. Training with this file reproduces the run."


def resolved(recipe: Recipe, chosen: Mapping[str, Any] | None = None) -> str:
    """The recipe as YAML with every key, each with a comment on where its value came from.

    `chosen` holds what `auto` became, by dotted key. Values made from ${NAME} are written as the reference.
    Loading the text gives an equal recipe, but for what was chosen. Raises KeyError for a chosen key that
    does not exist.
    """
    writer = _Writer(recipe, dict(chosen or {}))
    lines = [_HEADER, *writer.section(recipe, "", "")]
    if writer.chosen:
        raise KeyError(f"not a key of this recipe: {', '.join(sorted(writer.chosen))}")
    return "\n".join(lines) + "\n"


def given(root: nodes.Node) -> str:
    """The keys of a tree as YAML, those alone that stand in it, each with the place where it was written.

    References to the environment that were not filled in stay references.
    """
    return "\n".join(_given(root, "")) + "\n"


def _given(node: nodes.Node, indent: str) -> Iterator[str]:
    for key, child in node.items():
        if isinstance(child.value, dict) and child.value and not indent:
            yield f"{inline(key)}:"
            yield from _given(child, indent + "  ")
        else:
            origin = "".join(c if c.isprintable() else "?" for c in str(child.place))
            yield f"{indent}{inline(key)}: {inline(nodes.plain(child))}  # {origin}"


def plain(recipe: Recipe) -> dict[str, Any]:
    """The same as values for JSON. The JSON text is YAML too, and loads as an equal recipe."""
    values: dict[str, Any] = nodes.plain(parse(resolved(recipe), Source("resolved"), Problems()))
    return values


class _Writer:
    def __init__(self, recipe: Recipe, chosen: dict[str, Any]) -> None:
        self.recipe = recipe
        self.chosen = chosen
        if recipe.adapter.scale is not None:
            self.chosen.pop("adapter.alpha", None)  # alpha is not used, and both cannot be written

    def section(self, model: BaseModel, path: str, indent: str) -> Iterator[str]:
        for name in type(model).model_fields:
            value, key = getattr(model, name), f"{path}.{name}" if path else name
            if isinstance(value, BaseModel) and not isinstance(value, LrScheduler) and key.count(".") == 0:
                yield f"{indent}{name}:"
                yield from self.section(value, key, indent + "  ")
            elif key == "data.train":
                yield f"{indent}{name}:"
                for i, entry in enumerate(value):
                    yield from self.entry(entry, f"{key}.{i}", indent + "  ")
            else:
                yield f"{indent}{name}: {self.value(key, value)}"

    def entry(self, entry: DataEntry, path: str, indent: str) -> Iterator[str]:
        first, *rest = self.section(entry, path, indent + "  ")
        yield f"{indent}- {first.strip()}"
        yield from rest

    def value(self, key: str, value: Any) -> str:
        """A value on one line with its comment."""
        if key in self.chosen:
            return f"{inline(self.chosen.pop(key))}  # chosen"
        if key == "training.warmup_ratio" and self.recipe.training.warmup_steps is not None:
            return "null  # not used: warmup_steps is given"
        if key == "training.max_grad_norm" and value is None:
            value = "none"
        origin = "".join(c if c.isprintable() else "?" for c in self.recipe.where(key))
        return f"{self.written(key, value)}  # {origin}"

    def written(self, key: str, value: Any) -> str:
        reference = self.recipe.reference(key) or self.recipe.reference(f"{key}.name")
        if reference is not None:
            return inline(reference)
        if isinstance(value, Named):
            options = self.written(f"{key}.options", value.options)
            return f"{{{inline(value.name)}: {options}}}" if value.options else inline(value.name)
        if isinstance(value, tuple):
            return f"[{', '.join(self.written(f'{key}.{i}', item) for i, item in enumerate(value))}]"
        if isinstance(value, dict):
            pairs = (f"{inline(name)}: {self.written(f'{key}.{name}', item)}" for name, item in value.items())
            return f"{{{', '.join(pairs)}}}"
        if isinstance(value, LrScheduler):
            allowed = CHOICE_OPTIONS[key.rsplit(".", 1)[-1]][value.name]
            options = self.written(key, {name: getattr(value, name) for name in allowed})
            return f"{{{value.name}: {options}}}" if allowed else value.name
        if isinstance(value, BaseModel):
            # A module's override: null would say what is not said.
            given = {name: item for name, item in value if item is not None}
            return self.written(key, given)
        return inline(value)


def inline(value: Any) -> str:
    """A plain value as YAML on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        text = repr(value)
        # 1e-08 without a point is text to readers of YAML 1.1.
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and isinstance(resolve(value), str) else _quoted(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{inline(key)}: {inline(item)}' for key, item in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(inline(item) for item in value)}]"
    return str(value)


def _quoted(text: str) -> str:
    def escaped(c: str) -> str:
        if c in '"\\':
            return f"\\{c}"
        return c if c.isprintable() else f"\\U{ord(c):08x}"

    return f'"{"".join(escaped(c) for c in text)}"'


def differences(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """Every key whose value differs: (dotted key, value in a, value in b), in the order of the recipe."""
    first, second = dict(_leaves(a, "")), dict(_leaves(b, ""))
    keys = list(dict.fromkeys([*first, *second]))
    return [(key, first.get(key), second.get(key)) for key in keys if first.get(key) != second.get(key)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
        for i, item in enumerate(value):
            yield from _leaves(item, f"{path}.{i}")
    else:
        yield path, value

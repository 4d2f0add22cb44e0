"""A draft as the text of a recipe: sections in the order of the schema, each key with where it came from."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from lrft.moving.draft import Draft, Line
from lrft.moving.finish import PLACEHOLDER
from lrft.recipe.dump import inline
from lrft.recipe.schema import Recipe
from lrft.utils.text import visible

WIDTH = 110
_SHOWN = 60  # characters of a value in a comment


def recipe(draft: Draft, tool: ModuleType, path: Path, head: str) -> str:
    """The recipe with its comments. Values that no key has yet are placeholders, marked as such."""
    lines = [*head.splitlines(), f"# Made from {visible(path.name)} of {tool.TITLE}. Behind # stands its own key."]
    lines += _sections(draft)
    given = [line for line in draft.lines if not line.place and not line.default]
    lines += _told("Left out, for want of a counterpart:", [line for line in given if not line.needless])
    lines += _told("Left out, since nothing is lost:", [line for line in given if line.needless])
    return "\n".join(lines) + "\n"


def _sections(draft: Draft) -> Iterator[str]:
    values = {**PLACEHOLDER, **draft.values}
    for name in Recipe.model_fields:
        if name in values:
            yield f"{name}: {inline(values[name])}{_origin(draft, name)}"
            continue
        keys = [key for key in values if key.split(".")[0] == name and key.count(".") == 1]
        if not keys:
            continue
        yield f"{name}:"
        for key in sorted(keys, key=lambda key: _rank(name, key)):
            short = key.split(".")[1]
            if key == "data.train":
                yield from _entries(draft, values[key])
            else:
                yield f"  {short}: {inline(values[key])}{_origin(draft, key)}"


def _rank(section: str, key: str) -> int:
    model: Any = Recipe.model_fields[section].annotation
    return list(model.model_fields).index(key.split(".")[1])


def _entries(draft: Draft, value: Any) -> Iterator[str]:
    yield f"  train:{_origin(draft, 'data.train')}"
    for entry in [{"path": value}] if isinstance(value, str) else value:
        for at, (name, item) in enumerate(entry.items()):
            yield f"    {'- ' if at == 0 else '  '}{name}: {inline(item)}"


def _origin(draft: Draft, key: str) -> str:
    """The comment of a key: the keys that led to it, and those that a default stands for."""
    lines = [line for line in draft.lines if line.place == key or line.place.startswith(f"{key}.")]
    if key == "training.global_batch_size":
        lines = [line for line in draft.lines if line.place == "training.micro_batch_size"] + lines
    given = list(dict.fromkeys(line.key for line in lines if not line.default))
    defaults = list(dict.fromkeys(line.key for line in lines if line.default))
    parts = [", ".join(given)] if given else []
    parts += [f"default of {', '.join(defaults)}"] if defaults else []
    if not parts and key in PLACEHOLDER and key not in draft.values:
        parts = ["the configuration does not say it: replace this"]
    return f"  # {visible('; '.join(parts))}" if parts else ""


def _told(title: str, lines: list[Line]) -> Iterator[str]:
    if not lines:
        return
    yield ""
    yield f"# {title}"
    for line in lines:
        text = f"{line.key}: {shown(line.value)}: {line.text}"
        yield from textwrap.wrap(
            visible(text), WIDTH, initial_indent="#   ", subsequent_indent="#       ", break_on_hyphens=False
        )


def shown(value: Any) -> str:
    """A value of another tool in a comment: on one line, and short."""
    text = str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def key_on(text: str, number: int) -> str:
    """The dotted key that stands on a line of `recipe`'s text, from 1."""
    lines = text.splitlines()
    line = lines[number - 1]
    if not line.startswith(" "):
        return line.split(":", 1)[0]
    section = next(above for above in reversed(lines[:number]) if above and above[0] not in " #").split(":", 1)[0]
    if line.startswith("    "):
        return f"{section}.train"
    return f"{section}.{line.strip().split(':', 1)[0]}"

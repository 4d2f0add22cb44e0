"""From a configuration to a recipe: every key looked up in its tool's table, converted, and accounted for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lrft.errors import RecipeError
from lrft.foreign.entries import Entry, Missing, Needless, To
from lrft.moving import written
from lrft.moving.configuration import Configuration, read, walk
from lrft.moving.conversions import convert
from lrft.moving.draft import Draft, Line, Nothing, Unsaid
from lrft.moving.finish import finish
from lrft.moving.recognise import tool_of
from lrft.moving.shell import DEVICES
from lrft.recipe.load import of_tree
from lrft.recipe.nodes import Source
from lrft.recipe.problems import Problems
from lrft.recipe.yaml_parser import parse

_ROUNDS = 20  # values that a recipe refuses are taken out one by one


@dataclass(frozen=True)
class Moved:
    """`text`: the recipe. `carried`, `needless`, `missing`: the keys of the file, each once. `open`: keys of a recipe
    that the file does not say and a recipe needs."""

    tool: ModuleType
    text: str
    carried: tuple[Line, ...]
    needless: tuple[Line, ...]
    missing: tuple[Line, ...]
    open: tuple[str, ...]


def move(
    path: Path, tool: str | None = None, *, head: str = "", model: str | None = None, data: str | None = None
) -> Moved:
    """The configuration at `path` as a recipe that `lrft check --static` accepts.

    head: comment lines above it. model and data take the place of what the file names. Raises UsageError when the file
    cannot be read, or belongs to no known tool.
    """
    found = read(path)
    chosen = tool_of(found, tool)
    draft = _drafted(found, chosen)
    for key, given in (("model.name", model), ("data.train", data and [{"path": data}])):
        if given:
            draft.lose(key, "given to the command", needless=True)
            draft.values[key] = given
    text = _accepted(draft, chosen, path, head)
    lines = [line for line in draft.lines if not line.default]
    return Moved(
        chosen,
        text,
        tuple(line for line in lines if line.place),
        tuple(line for line in lines if not line.place and line.needless),
        tuple(line for line in lines if not line.place and not line.needless),
        tuple(key for key in ("model.name", "data.train") if key not in draft.values),
    )


def _drafted(found: Configuration, tool: ModuleType) -> Draft:
    draft = Draft()
    given = dict(walk(found.keys, set(tool.KEYS)))
    groups = {key.split(".", 1)[0] for key in given}  # of a program: a call that it does not make has no defaults
    defaults = {
        key: value
        for key, value in tool.DEFAULTS.items()
        if key not in given and (not hasattr(tool, "CALLS") or key.split(".", 1)[0] in groups)
    }
    for key, value in (*given.items(), *defaults.items()):
        line = Line(key, value, default=key in defaults and key not in given)
        draft.lines.append(line)
        entry = To("batch.devices") if key == DEVICES and DEVICES not in tool.KEYS else entry_of(key, tool)
        try:
            _take(draft, line, entry, found.path.parent)
        except Unsaid as reason:
            line.text = str(reason)
        except Nothing as reason:
            line.text, line.needless = str(reason), True
    started = [tool.PROGRAMS[name] for name in found.commands if name in getattr(tool, "PROGRAMS", {})]
    if started:
        draft.values.setdefault("training.objective", started[0])
    finish(draft)
    return draft


def entry_of(key: str, tool: ModuleType) -> Entry:
    """What the tool's table says of a dotted key: its own line, or that of the map that it stands in."""
    if key in tool.KEYS:
        entry: Entry = tool.KEYS[key]
        return entry
    parts = key.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (above := ".".join(parts[:length]) + ".") in tool.KEYS:
            return tool.KEYS[above]
    return Missing(f"not a key of {tool.TITLE} that lrft knows")


def _take(draft: Draft, line: Line, entry: Entry, folder: Path) -> None:
    if isinstance(entry, Missing):
        raise Unsaid(entry.reason)
    if isinstance(entry, Needless):
        raise Nothing(entry.reason)
    value = convert(entry.how, line.value, entry.by, folder)
    if entry.key == "training.objective" and entry.key in draft.values:
        _more_exact(draft, line, value)
    else:
        draft.put(line, entry.key, value)


def _more_exact(draft: Draft, line: Line, value: Any) -> None:
    """A second word on the objective, such as dpo's loss, changes the first unless it only repeats it."""
    line.place = "training.objective"
    if value not in ("sft", "dpo"):
        draft.values["training.objective"] = value


def _accepted(draft: Draft, tool: ModuleType, path: Path, head: str) -> str:
    """The recipe, without the values that a recipe refuses: these are told as missing, with the refusal."""
    for _ in range(_ROUNDS):
        text = written.recipe(draft, tool, path, head)
        problems = Problems()
        try:
            of_tree(parse(text, Source("recipe"), problems), problems)
            return text
        except RecipeError as error:
            for problem in error.problems:
                _refused(draft, text, problem.place, problem.text)
    return text


def _refused(draft: Draft, text: str, place: str, reason: str) -> None:
    """Take out what stands on the line that a problem names."""
    key = written.key_on(text, int(place.split(":")[1]))
    # What a method or an optimiser needs is changed before the method is given up.
    others = [
        name for name in draft.values if name != key and re.search(rf"(requires|needs) {re.escape(name)}\b", reason)
    ]
    for name in others or [key]:
        draft.lose(name, reason)

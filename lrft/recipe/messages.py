"""Error messages for wrong keys and values, with the closest name."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ValidationError

from lrft.errors import nearest
from lrft.recipe import foreign_keys, schema
from lrft.recipe.nodes import Node, Path, dotted
from lrft.recipe.problems import Problems
from lrft.recipe.types import said
from lrft.recipe.yaml_scalars import looks_like_number

# Sections by their path, without list indices and free keys.
SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): schema.Recipe,
    ("model",): schema.ModelSection,
    ("model", "add_tokens"): schema.NewToken,
    ("adapter",): schema.AdapterSection,
    ("adapter", "overrides"): schema.ModuleOverride,
    ("data",): schema.DataSection,
    ("data", "train"): schema.DataEntry,
    ("training",): schema.TrainingSection,
    ("training", "lr_scheduler"): schema.LrScheduler,
    ("training", "early_stopping"): schema.EarlyStopping,
    ("distributed",): schema.DistributedSection,
    ("evaluation",): schema.EvaluationSection,
    ("checkpoint",): schema.CheckpointSection,
    ("logging",): schema.LoggingSection,
    ("after",): schema.AfterSection,
}
# Where a misplaced key is looked for. The others repeat names, or are written as a choice.
_FINDABLE = [section for section in SECTIONS if len(section) < 2 or section == ("data", "train")]
_ENTRY = ("data", "train")
LONGEST = 100
_TAGS = ("word", "settings")  # pydantic puts the branch of a union into the path of an error
_KEY = "[key]"  # and this behind a key of a map that is wrong itself
# A file that is wrong throughout: nobody reads further, and looking for near names takes a millisecond each.
ENOUGH = 100
_CHOICES = (("training", "lr_scheduler", "name"),)


def add_errors(error: ValidationError, root: Node, problems: Problems, prefix: Path = ()) -> None:
    """Each of pydantic's errors as a problem at its place. `prefix` leads from `root` to what was checked."""
    said: list[tuple[Path, str]] = []
    # Unknown keys first: a key that is missing because it is spelled otherwise has been told by then.
    for item in sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing"):
        if len(problems.found) >= ENOUGH:
            break
        path = (*prefix, *(part for part in item["loc"] if part not in _TAGS))
        if item["type"] == "extra_forbidden":
            place = _key_place(root, path)
            if place is not None:
                said.append((path, unknown_key(path, root)))
                problems.add(place, said[-1][1])
            continue
        if item["type"] == "missing":
            if any(_is_meant(path, unknown, sentence) for unknown, sentence in said):
                continue
            parent = root.at(path[:-1]) or root
            problems.add(parent.place, f"{dotted(path)} is required. {_description(path)}".rstrip())
            continue
        wrong_key = path[-1:] == (_KEY,)
        path = path[:-1] if wrong_key else path
        if root.at(path) is None and isinstance(path[-1], int):
            path = path[:-1]  # `target_modules: q_proj` was made a list of one
        node = root.at(path) or root.at(path[:-1]) or root
        if item["type"] == "too_short" and node.value:
            continue  # its items are wrong themselves, and told of
        place = _key_place(root, path) if wrong_key else node.place
        if place is not None and node.place not in problems.refused:
            shown = dotted(path[:-1] if path in _CHOICES else path)
            problems.add(place, f"{shown}: {_sentence(item, shown, node)}")


def _is_meant(path: Path, unknown: Path, sentence: str) -> bool:
    """Whether what was said about an unknown key leads to the missing one at `path`."""
    here = f"Here: {dotted(path)}"
    beside = path[:-1] == unknown[:-1] and f"Did you mean {path[-1]}?" in sentence
    return beside or re.search(rf"{re.escape(here)}(\.|$)", sentence) is not None


def add_option_errors(
    error: ValidationError, key: str, name: str, options: Node, known: list[str], problems: Problems
) -> None:
    """The same for the options of `name`, an entry of the key `key`."""
    for item in error.errors(include_url=False):
        option = str(item["loc"][0])
        node = options.child(option) or options
        if item["type"] == "extra_forbidden":
            close = nearest(option, known)
            hint = f"Did you mean {close[0]}?" if close else f"It takes {', '.join(known) or 'no options'}"
            problems.add(options.keys[option], f"{key}: {name} has no option {option}. {hint}")
        elif node.place not in problems.refused:
            shown = f"{key}: {name}.{option}"
            problems.add(node.place, f"{shown}: {_sentence(item, shown, node)}")


def _key_place(root: Node, path: Path) -> Any:
    parent = root.at(path[:-1])
    return parent.keys.get(str(path[-1])) if parent is not None else None


def _description(path: Path) -> str:
    model = SECTIONS.get(_section(path[:-1]))
    info = model.model_fields.get(str(path[-1])) if model is not None else None
    return info.description or "" if info is not None else ""


def _section(path: Path) -> tuple[str, ...]:
    """The path of a section in SECTIONS: indices and the free keys of adapter.overrides left out."""
    names = tuple(part for part in path if isinstance(part, str))
    return names[:2] if names[:2] == ("adapter", "overrides") else names


_EXPECTED = {
    **dict.fromkeys(("int_type", "int_from_float", "int_parsing"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "text",
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a map of keys"),
    "finite_number": "a finite number",
}
_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def got(node: Node, value: Any) -> str:
    """A wrong value in a sentence: as it was spelled; never the value of an environment variable."""
    if node.reference is not None:
        return f"the text of {node.reference}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return node.written if node.written and is_number else said(value)


def _sentence(item: Any, key: str, node: Node) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    known = next(
        (
            values.get(value)
            for name, values in foreign_keys.VALUES.items()
            if isinstance(value, str) and _same_key(name, key)
        ),
        None,
    )
    if known:
        return f"got '{value}'. {known}"
    if kind == "plain":
        return _masked(context["sentence"], node, value) + _quotes(value, node)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {got(node, value)}" + _hint(kind, value, node)
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        limit = context[bound]
        return f"must be {words} {int(limit) if limit == int(limit) else limit}, got {got(node, value)}"
    if kind == "literal_error":
        return _choice(context["expected"], value, node)
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    return f"{item['msg'][0].lower()}{item['msg'][1:]}, got {got(node, value)}"


def _same_key(name: str, key: str) -> bool:
    """Whether a dotted key is `name`, list indices aside."""
    return [part for part in key.split(".") if not part.isdigit()] == name.split(".")


def _masked(sentence: str, node: Node, value: Any) -> str:
    if node.reference is None or not isinstance(value, str):
        return sentence
    return sentence.replace(said(value), got(node, value)).replace(value, node.reference)


def _hint(kind: str, value: Any, node: Node) -> str:
    if kind == "string_type" and isinstance(value, int | float):
        return ". Put it in quotes if it is text"
    if kind in ("int_from_float", "int_type") and isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f". Write {int(value)}"
    return _quotes(value, node) if _EXPECTED[kind] in ("a whole number", "a number") else ""


def _quotes(value: Any, node: Node) -> str:
    is_quoted = isinstance(value, str) and node.reference is None and looks_like_number(value)
    return ". Remove the quotes" if is_quoted else ""


def _choice(expected: str, value: Any, node: Node) -> str:
    names = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")]
    close = nearest(value, names) if isinstance(value, str) and node.reference is None else []
    wanted = f"expected one of {', '.join(names)}" if len(names) > 1 else f"expected {names[0]}"
    said = f"'{value}'" if isinstance(value, str) and node.reference is None and len(value) <= 60 else got(node, value)
    return f"{wanted}; got {said}" + (f". Did you mean {close[0]}?" if close else "")


def unknown_key(path: Path, root: Node) -> str:
    """The sentence for a key that does not exist: whose name it is, where it lives, or which one is near."""
    name, section, shown = str(path[-1]), _section(path[:-1]), dotted(path)
    if len(shown) > LONGEST:
        return f"{shown[:LONGEST]}... is not a key"
    sentence = foreign_keys.key_sentence(name, shown, root)
    if sentence is not None:
        return sentence
    homes = _homes(name)
    if homes == [(*_ENTRY, name)]:
        return (
            f"{name} belongs to an entry of {dotted(_ENTRY)}: {dotted((*_ENTRY, 0, name))}, or in a file "
            f"{_ENTRY[-1]}: {{path: ..., {name}: ...}}"
        )
    if homes:
        place = f"under {dotted(homes[0][:-1])}: " if len(homes[0]) > 1 else "at the left margin: "
        if len(homes) == 1:
            return f"{name} belongs {place}{dotted(homes[0])}"
        return f"{shown} is not a key. There are {' and '.join(dotted(home) for home in homes)}"
    here = list(SECTIONS[section].model_fields) if section in SECTIONS else []
    near, far = nearest(name, here), nearest(name, _all_names())
    if near or far:
        meant = near or [dotted(home) for home in _homes(far[0])]
        return f"{shown} is not a key. Did you mean {' or '.join(meant)}?"
    return f"{shown} is not a key. Keys here: {', '.join(here)}"


def _homes(name: str) -> list[tuple[str, ...]]:
    """Every place where a key of this name exists."""
    return [(*section, name) for section in _FINDABLE if name in SECTIONS[section].model_fields]


def _all_names() -> list[str]:
    return [name for section in _FINDABLE for name in SECTIONS[section].model_fields]

"""From a path and arguments to a Recipe: read, extend, override, fill in, validate; all problems at once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lrft.errors import Problem, RecipeError
from lrft.recipe import adapter_checks, checks, env_vars, messages
from lrft.recipe.extends import Files
from lrft.recipe.nodes import Node, Place, Source, dotted, from_python, mapping, plain, without_null
from lrft.recipe.normalize import expand, normalise, with_methods
from lrft.recipe.overrides import apply
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.schema import AdapterSection, DataEntry, Recipe
from lrft.recipe.yaml_parser import parse

Model = TypeVar("Model", bound=BaseModel)
SECRET = 6  # characters; a shorter value is a word such as `none`, and would be taken for one everywhere


def load(path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Recipe:
    """The recipe at `path` under `overrides` (key=value, ~key; the first is "argument 1").

    Raises UsageError when the file cannot be read, otherwise RecipeError with every problem and its place.
    """
    problems = Problems()
    try:
        root = Files(problems).read(Path(path))
        root = apply(root, overrides, problems)
    except Refused as refused:
        problems.add(refused.place, refused.text)
        raise RecipeError(problems.sorted()) from None
    return of_tree(root, problems)


def of_tree(root: Node, problems: Problems) -> Recipe:
    """The recipe that a tree of keys says, its bases merged and its short forms expanded.

    Raises RecipeError with what is in `problems` already and every further problem.
    """
    try:
        root = without_null(env_vars.fill(root, problems))
        checks.version(root)
    except Refused as refused:
        problems.add(refused.place, refused.text)
        raise RecipeError(problems.sorted()) from None
    root = checks.all_of(normalise(root, problems), problems)
    recipe = _validated(Recipe, root, (), problems)
    for found, node in root.walk():
        recipe._places[dotted(found)] = str(node.place)
        if node.reference is not None:
            recipe._references[dotted(found)] = node.reference
            if len(str(node.value)) >= SECRET:
                recipe._filled[str(node.value)] = node.reference
    return recipe


def parse_entry(path: str, read_as: Mapping[str, Any], texts: Mapping[str, str]) -> DataEntry:
    """An entry of data.train: `path`, read as `read_as` says but for the keys of `texts`, given as YAML.

    Raises RecipeError with every problem, each at the option --key of the command.
    """
    problems = Problems()
    given: dict[str, Node] = {}
    for key, text in texts.items():
        source = Source(f"--{key.replace('_', '-')}")
        try:
            given[key] = parse(text, source, problems)
        except Refused as refused:
            problems.add(refused.place, refused.text)
    entry = from_python({"path": path, **read_as}, "--data")
    for key, node in given.items():
        entry = entry.with_child(key, node)
    root = mapping({"data": mapping({"train": Node([entry], entry.place)}, entry.place)}, entry.place)
    try:
        return _validated(DataEntry, root, ("data", "train", 0), problems)
    except RecipeError as error:
        short = [Problem(p.place.split(":")[0], p.text.removeprefix("data.train.0.")) for p in error.problems]
        raise RecipeError(short) from None


def parse_adapter(value: Mapping[str, Any] | str, place: str = "adapter") -> AdapterSection:
    """The adapter section from Python values with the keys of the recipe. Places are dotted names in `place`.

    Raises RecipeError with every problem.
    """
    problems = Problems()
    whole = Place(Source(place))
    section = without_null(expand(mapping({"adapter": from_python(value, place)}, whole)))
    adapter = section.child("adapter") or mapping({}, whole)
    if isinstance(adapter.value, dict):
        section = section.with_child("adapter", with_methods(adapter, problems))
    try:
        return _validated(AdapterSection, adapter_checks.adapter(section, problems), ("adapter",), problems)
    except RecipeError as error:
        # The place is the key here: saying it twice would only be longer.
        short = [Problem(p.place, p.text.removeprefix(p.place).lstrip(": ")) for p in error.problems]
        raise RecipeError(short) from None


def _validated(model: type[Model], root: Node, path: tuple[str | int, ...], problems: Problems) -> Model:
    """`model` from the node at `path`. Raises RecipeError with these problems and those found before."""
    node = root.at(path) or root
    try:
        result = model.model_validate(plain(node))
    except ValidationError as error:
        messages.add_errors(error, root, problems, path)
        raise RecipeError(problems.sorted()) from None
    problems.raise_if_any()
    return result

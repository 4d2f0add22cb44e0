"""The runs of a comparison: what each changes in the common recipe, and the grid that each is made on."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.recipe.dump import given
from lrft.recipe.load import of_tree
from lrft.recipe.nodes import Node, Place, Source, mapping, plain
from lrft.recipe.overrides import set_key
from lrft.recipe.problems import Problems, Refused
from lrft.recipe.schema import Recipe

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,59}")
METHOD, RANK, SEED = "adapter.method", "adapter.rank", "training.seed"
# Keys that the comparison itself sets, and what sets them.
OWN = {
    SEED: "set it with seeds",
    "output_dir": "each run has its own folder",
    "extends": "it belongs under recipe",
    "lrft": "it belongs under recipe",
}
_PLAIN = re.compile(r"[A-Za-z0-9.+-]{1,40}")


@dataclass(frozen=True)
class Values:
    """What the grid crosses at one key. `place`: where the key was written."""

    place: Place
    items: tuple[Node, ...]


Grid = Mapping[str, Values]
"""by dotted key of the recipe"""

Rank = tuple[int, str] | None
"""a number and who chose it; None: the recipe's own"""


@dataclass(frozen=True)
class Point:
    """One combination of the grid's values. `keys`: where each key was written."""

    values: Mapping[str, Node]
    keys: Mapping[str, Place]

    def plain(self) -> dict[str, Any]:
        """{dotted key: value}."""
        return {key: _json(plain(node)) for key, node in self.values.items()}

    @property
    def folder(self) -> Path:
        """A relative path that is the same for the same values, whatever else the grid holds; "." without any."""
        words = [key.rsplit(".", 1)[-1] for key in self.values]
        names = words if len(set(words)) == len(words) else list(self.values)
        return Path(*(f"{name}-{slug(value)}" for name, value in zip(names, self.plain().values(), strict=True)))

    @property
    def label(self) -> str:
        """`learning_rate 0.001`."""
        return " ".join(f"{key.rsplit('.', 1)[-1]} {shown(value)}" for key, value in self.plain().items())


@dataclass(frozen=True)
class Variant:
    """One run of the file. `tree`: the common recipe with this run's keys over it."""

    name: str
    tree: Node
    points: tuple[Point, ...]
    gives_rank: bool

    def recipe(self, point: Point, *, seed: int, output: Path, rank: Rank = None) -> tuple[Recipe, str]:
        """The recipe of one run folder, and the keys that are given as YAML. Raises RecipeError."""
        problems, tree = Problems(), self.tree
        settings = [(key, node, point.keys[key]) for key, node in point.values.items()]
        settings += [_setting(SEED, seed, "seeds"), _setting("output_dir", str(output), "output_dir")]
        settings += [_setting(RANK, *rank)] if rank is not None else []
        for key, node, place in settings:
            try:
                tree = set_key(tree, key, node, place)
            except Refused as refused:
                problems.add(refused.place, refused.text)
        return of_tree(tree, problems), given(tree)


def _setting(key: str, value: Any, said_by: str) -> tuple[str, Node, Place]:
    place = Place(Source(said_by))
    return key, Node(value, place), place


def find_grid(node: Node | None, problems: Problems, *, ranks: bool) -> dict[str, Values]:
    """The grid's lists of values. ranks: adapter.rank may be among them."""
    if node is None or node.value is None:
        return {}
    if not isinstance(node.value, dict) or not node.value:
        problems.add(node.place, "grid: expected keys of the recipe with lists of values, or no grid at all")
        return {}
    found = {}
    for key, values in node.value.items():
        place = node.keys[key]
        if key in OWN:
            problems.add(place, f"grid: {key} cannot be in the grid: {OWN[key]}")
        elif key in (METHOD, "adapter"):
            problems.add(place, f"grid: {key} cannot be in the grid: methods are set under runs")
        elif key == RANK and not ranks:
            problems.add(place, "grid: adapter.rank is chosen by the budget; set budget: none to put it in the grid")
        elif not isinstance(values.value, list):
            problems.add(values.place, f"grid.{key}: expected a list of values")
        else:
            _refuse_twice(f"grid.{key}", values, problems)
            found[key] = Values(place, tuple(values.value))
    return found


def _refuse_twice(key: str, node: Node, problems: Problems) -> None:
    """A list of values must hold some, each once."""
    if not node.value:
        problems.add(node.place, f"{key}: the list is empty; give values, or leave the key out")
    seen: list[Any] = []
    for item in node.value:
        value = _json(plain(item))
        if value in seen:
            problems.add(item.place, f"{key}: {shown(value)} is listed twice")
        seen.append(value)


def find_variants(root: Node, base: Node, grid: Grid, problems: Problems) -> tuple[Variant, ...]:
    """The runs in the order of the file; those that are wrong are left out."""
    node = root.child("runs")
    if node is None or not isinstance(node.value, dict | list) or not node.value:
        place = root.place if node is None else node.place
        problems.add(place, "runs: expected runs by name, as in {lora: lora, mine: {adapter.method: mora}}, or a list")
        return ()
    named: dict[str, tuple[Place, Node]] = {}
    if isinstance(node.value, dict):
        # Nothing after the colon: the name is the method.
        named = {
            key: (node.keys[key], Node(key, node.keys[key]) if run.value is None else run)
            for key, run in node.value.items()
        }
    for item in node.value if isinstance(node.value, list) else ():
        if not isinstance(item.value, str):
            problems.add(item.place, "runs: a list holds names of methods; write NAME: ... for anything else")
        elif item.value in named:
            problems.add(item.place, f"runs: {item.value} is listed twice")
        else:
            named[item.value] = (item.place, item)
    for name, (place, _) in named.items():
        if not NAME.fullmatch(name):
            problems.add(place, f"runs: '{name[:60]}' is not a valid run name: up to 60 letters, digits and . _ + -")
    made = [_variant(name, run, base, grid, problems) for name, (_, run) in named.items() if NAME.fullmatch(name)]
    return tuple(variant for variant in made if variant is not None)


def _variant(name: str, run: Node, base: Node, grid: Grid, problems: Problems) -> Variant | None:
    keys = _keys(name, run, problems)
    if keys is None:
        return None
    lists = {
        key: node if isinstance(node.value, list) else Node([node], node.place)
        for key, (node, _) in keys.items()
        if key in grid
    }
    before = len(problems.found)
    for key, node in lists.items():
        _refuse_twice(f"runs.{name}.{key}", node, problems)
    if len(problems.found) > before:
        return None
    own = {key: Values(keys[key][1], tuple(node.value)) for key, node in lists.items()}
    try:
        changes = _with_keys(mapping({}, run.place), keys, own)
        if keys and name in _words() and not _chooses_method(changes):  # a run called mora must not train a LoRA
            keys = {METHOD: (Node(name, run.place), run.place), **keys}
            changes = _with_keys(mapping({}, run.place), keys, own)
        if not _leaves_alone(name, changes, grid, problems):
            return None
        tree, adapter = base, base.child("adapter")
        if changes.at(("adapter", "method")) is not None and adapter is not None and isinstance(adapter.value, dict):
            tree = base.with_child("adapter", adapter.with_child("method", None))  # its options are not this one's
        tree = _with_keys(tree, keys, own)
    except Refused as refused:
        problems.add(refused.place, f"runs.{name}: {refused.text}")
        return None
    crossed = {**grid, **own}
    points = tuple(
        Point(dict(zip(crossed, values, strict=True)), {key: some.place for key, some in crossed.items()})
        for values in itertools.product(*(some.items for some in crossed.values()))
    )
    return Variant(name, tree, points, changes.at(("adapter", "rank")) is not None or RANK in crossed)


def _with_keys(tree: Node, keys: Mapping[str, tuple[Node, Place]], own: Grid) -> Node:
    """A tree with a run's keys over it, but for those that are crossed. Raises Refused."""
    for key, (node, place) in keys.items():
        tree = tree if key in own else set_key(tree, key, node, place)
    return tree


def _keys(name: str, run: Node, problems: Problems) -> dict[str, tuple[Node, Place]] | None:
    """{dotted key: (value, where the key stands)} of one run, or None when it is a problem."""
    if isinstance(run.value, str | list):
        return {METHOD: (run, run.place)}
    if not isinstance(run.value, dict):
        problems.add(run.place, f"runs.{name}: expected a method, a list of methods, or a map of the recipe's keys")
        return None
    if len(run.value) == 1 and next(iter(run.value)) in _words():
        return {METHOD: (run, run.place)}
    return {key: (node, run.keys[key]) for key, node in run.value.items()}


def _words() -> set[str]:
    """What names a method in a recipe."""
    return {*registry.methods(), *registry.PRESETS}


def _chooses_method(changes: Node) -> bool:
    adapter = changes.child("adapter")
    return adapter is not None and (not isinstance(adapter.value, dict) or adapter.child("method") is not None)


def _leaves_alone(name: str, changes: Node, grid: Grid, problems: Problems) -> bool:
    """Whether a run keeps off what the comparison sets, and off the grid but by the grid's own spelling of a key."""
    before = len(problems.found)
    for key, reason in OWN.items():
        node = changes.at(tuple(key.split(".")))
        if node is not None:
            problems.add(node.place, f"runs.{name}: {key} cannot be set in a run: {reason}")
    for key in grid:
        node = changes.at(tuple(key.split(".")))
        if node is not None:
            text = f"runs.{name}: the grid crosses {key}; write {key}: [...] in the run to give it values of its own"
            problems.add(node.place, text)
    return len(problems.found) == before


def slug(value: Any) -> str:
    """A short name for a value in a path, the same for equal values."""
    text = shown(value)
    return text if _PLAIN.fullmatch(text) else hashlib.sha256(json.dumps(value).encode()).hexdigest()[:8]


def shown(value: Any) -> str:
    """A value of the grid in a table."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value)
    return str(value) if isinstance(value, str | int) else json.dumps(value)


def _json(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    return {key: _json(item) for key, item in value.items()} if isinstance(value, dict) else value

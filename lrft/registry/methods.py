"""The declarations of methods and of their parts, and the words that they may use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lrft.registry.declarations import Declaration, Source, declaration, declaring, reading, sources

FOLDER = Path(__file__).parents[1] / "methods"
DEFAULT_METHOD = "lora"

# What two owners would both do. A declaration that names another slot is refused: a typo would hide one.
SLOTS: dict[str, str] = {
    "update": "build the update",
    "init": "set the init of A and B",
    "scale": "set the scaling factor",
    "ranks": "set the ranks",
    "entries": "decide which entries of A and B are zero",
    "pair-rates": "set the learning rates of A and B",
    "gradient": "make a step's gradient from several passes",
    "pair-gradient": "change the gradients of A and B",
    "magnitude": "reparametrise magnitude and direction",
    "forward": "change the forward pass in training",
    "optimizer": "choose the optimiser",
    "restart": "restart the update",
    "copies": "average several predictions",
    "steps": "set the step length",
    "placement": "choose the target modules",
    "base": "prune the base",
}

# What one entry provides and another requires, as the end of "X needs ..." and of "Y has no ...".
PROPERTIES: dict[str, tuple[str, str]] = {
    "delta": ("an update that is added to the weight", "such update"),
    "pair": ("a pair of factors A and B", "such pair"),
    "scale": ("a factor alpha/r", "factor alpha/r"),
    "redrawable": ("a zero init that can be redrawn", "such init"),
    "dense": ("a dense update of the weight's shape", "such update"),
}

NAME = re.compile(r'^    name: ClassVar\[str\] = "([^"\\\n]+)"$', re.MULTILINE)
NO_DROPOUT = "dropout=0"
VALIDATION = "validation"


@dataclass(frozen=True)
class MethodCard(Declaration):
    """The declaration of one method or part."""

    kind: str
    paper: str
    equation: str
    parameters: str
    exports: str
    evidence: str
    builds: bool
    on: str
    slots: tuple[str, ...]
    provides: tuple[str, ...]
    requires: tuple[str, ...]
    conflicts: tuple[str, ...]
    quantization_conflict: str
    learning_rate: float | None
    """the default of training.learning_rate; None: that of the method which the part works on"""
    rate_source: str


class Cards(Mapping[str, MethodCard]):
    """Cards by recipe name, in order: those that build first, then the parts, each alphabetically.

    Reading them all takes a third of a second, and a recipe names one or two. So of a file of lrft only the name is
    looked for, and the rest when its card is asked for. What an installed package brings may be broken: it is read at
    once.
    """

    def __init__(self, folder: Path) -> None:
        self._sources: dict[str, Source] = {}
        self._read: dict[str, MethodCard] = {}
        for source in sources(folder, "lrft.methods", "lrft.methods" if folder == FOLDER else None):
            with reading(source):
                self._add(source)

    def _add(self, source: Source) -> None:
        name = "" if source.package else name_in(source.file)
        card = None if name else read_card(source)
        name = name if card is None else card.name
        if name in self._sources:
            raise ValueError(f"{source.file}: the name {name} is also that of {self._sources[name].file.name}")
        self._sources[name] = source
        if card is not None:
            self._read[name] = card

    @property
    def names(self) -> set[str]:
        """All of them, in no order."""
        return set(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def __getitem__(self, name: str) -> MethodCard:
        if name not in self._read:
            self._read[name] = read_card(self._sources[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._sources, key=lambda name: (not self[name].builds, name)))

    def __len__(self) -> int:
        return len(self._sources)


def methods(folder: Path = FOLDER) -> Cards:
    """The cards of all methods and parts.

    Raises ValueError with file and line for a declaration that breaks the format: a bug of the method's file; LrftError
    for one of an installed package.
    """
    return cards_in(folder)


cards_in = cache(Cards)


def name_in(file: Path) -> str:
    """The recipe's word for what a file declares, where it is written as usual and once; else ""."""
    found = NAME.findall(file.read_text(encoding="utf-8"))
    return found[0] if len(found) == 1 else ""


def read_card(source: Source) -> MethodCard:
    """The declaration in a method's file. Raises ValueError when there is not exactly one, or it is no literal."""
    file = source.file
    found = declaring(file)
    if len(found) != 1:
        raise ValueError(f"{file}: one class with a class variable `name` is expected, found {len(found)}")
    node, values = found[0]
    missing = [key for key in ("kind", "paper", "equation") if key not in values]
    if missing:
        raise ValueError(f"{file}:{node.lineno}: {node.name} does not declare {', '.join(missing)}")
    _check_words(file, node, values)
    if ("learning_rate" in values) != bool(values.get("rate_source")):
        raise ValueError(f"{file}:{node.lineno}: learning_rate and rate_source must be declared together")
    is_method = any(isinstance(base, ast.Name) and base.id == "Method" for base in node.bases)
    return MethodCard(
        **declaration(source, node, values),
        kind=values["kind"],
        paper=values["paper"],
        equation=values["equation"],
        # The defaults are those of the base class Part, which cannot be imported here.
        parameters=values.get("parameters", "those of the method"),
        exports=values.get("exports", "as the method"),
        evidence=values.get("evidence", ""),
        builds=values.get("builds", is_method),
        on=values.get("on", DEFAULT_METHOD),
        slots=values.get("slots", ()),
        provides=values.get("provides", ()),
        requires=values.get("requires", ()),
        conflicts=values.get("conflicts", ()),
        quantization_conflict=values.get("quantization_conflict", ""),
        learning_rate=values.get("learning_rate"),
        rate_source=values.get("rate_source", ""),
    )


def _check_words(file: Path, node: ast.ClassDef, values: dict[str, Any]) -> None:
    allowed = {
        "slots": {*SLOTS},
        "provides": {*PROPERTIES},
        "requires": {*PROPERTIES, NO_DROPOUT, VALIDATION},
        "conflicts": {*SLOTS},
    }
    for key, words in allowed.items():
        unknown = set(values.get(key, ())) - words
        if unknown:
            raise ValueError(
                f"{file}:{node.lineno}: {key} names {', '.join(sorted(unknown))}, not one of {sorted(words)}"
            )

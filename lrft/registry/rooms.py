"""Objectives, optimisers, trackers, metrics and exporters by name: what the files of each room declare."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from lrft.errors import MissingError
from lrft.registry.declarations import Declaration, add_card, declaration, declaring, reading, sources

# Where the classes of each kind lie, and the group of entry points by which an installed package adds to them.
ROOMS = {
    "objectives": "objectives",
    "optimizers": "optim",
    "trackers": "tracking",
    "metrics": "metrics",
    "exporters": "export",
}

# How a user's own function is named where a registry's name may stand: python:FILE:FUNCTION.
PYTHON = "python:"


@cache
def declared(kind: str) -> dict[str, Declaration]:
    """Declarations of one of `ROOMS` by name: objectives, optimizers, trackers, metrics or exporters.

    A file without a class that has a `name` declares nothing. Raises ValueError for a broken declaration, and for a
    name that is declared twice; LrftError where an installed package does.
    """
    found: dict[str, Declaration] = {}
    for source in sources(Path(__file__).parents[1] / ROOMS[kind], f"lrft.{ROOMS[kind]}", f"lrft.{kind}"):
        with reading(source):
            for node, values in declaring(source.file):
                add_card(found, Declaration(**declaration(source, node, values)))
    return found


class Chosen(Protocol):
    """What a recipe names of a registry."""

    @property
    def name(self) -> str: ...


def refuse_missing(key: str, chosen: Chosen, kind: str) -> None:
    """Raises MissingError where the package that a declaration `needs` is not installed. Imports nothing."""
    card = declared(kind).get(chosen.name)  # none: a user's own function
    package = "" if card is None else card.facts.get("needs", "")
    if package and find_spec(package.replace("-", "_")) is None:
        raise MissingError(
            f"{key}: {chosen.name} needs the package {package}, which is not installed", f"pip install {package}"
        )

"""Mistakes in a recipe, gathered with their places until all can be said at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from lrft.errors import Problem, RecipeError
from lrft.recipe.nodes import Place


class Refused(Exception):
    """Reading stops here: what follows cannot be trusted."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place = place
        self.text = text


@dataclass
class Problems:
    """Collects mistakes with their places; every step of loading adds to the same one."""

    found: list[tuple[Place, str]] = field(default_factory=list)
    refused: set[Place] = field(default_factory=set)
    """places whose value is already reported: no second message for them"""

    def add(self, place: Place, text: str) -> None:
        self.found.append((place, text))

    def refuse(self, place: Place, text: str) -> None:
        """The value itself cannot be read; what stands in the tree for it is a stopgap."""
        self.add(place, text)
        self.refused.add(place)

    def sorted(self) -> list[Problem]:
        """By file, line and column; each once."""
        unique = dict.fromkeys(sorted(self.found, key=lambda item: item[0].rank))
        return [Problem(str(place), text + place.suffix) for place, text in unique]

    def raise_if_any(self) -> None:
        if self.found:
            raise RecipeError(self.sorted())

"""What is tried: learning rates, each with a rank and a method when these are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lrft import registry
from lrft.compare.grid import METHOD, RANK, Point, Variant
from lrft.compare.jobs import Job
from lrft.errors import RecipeError, UsageError, nearest
from lrft.recipe import Recipe
from lrft.recipe.extends import Files
from lrft.recipe.load import of_tree
from lrft.recipe.nodes import Node, Place, Source, from_python
from lrft.recipe.overrides import set_key
from lrft.recipe.problems import Problems, Refused

RATE, STEPS, WARMUP = "training.learning_rate", "training.max_steps", "training.warmup_steps"
RATIO = 10**0.5
"""between two rates"""
EACH_SIDE = 3
"""rates below and above the one that the recipe has"""
PLACE = Place(Source("lrft tune"))
# What every run of the search has instead of the recipe's own. Trackers are told of the run that comes of it.
OWN: dict[str, dict[str, Any]] = {
    "evaluation": {"every": 0.5, "at_start": False, "samples": 0},
    "checkpoint": {"every": 0.25, "keep": 1},
    "logging": {},
}


@dataclass(frozen=True)
class Candidate:
    """rank, method: None for the recipe's own."""

    rate: float
    rank: int | None = None
    method: str | None = None

    @property
    def group(self) -> tuple[str | None, int | None]:
        """What candidates have in common that differ by their rate alone."""
        return self.method, self.rank

    @property
    def values(self) -> dict[str, Any]:
        """{dotted key of the recipe: value}."""
        given = {RATE: self.rate, RANK: self.rank, METHOD: self.method}
        return {key: value for key, value in given.items() if value is not None}

    @property
    def label(self) -> str:
        return ", ".join(f"{key.rsplit('.', 1)[-1]} {value:g}" if key != METHOD else str(value) for key, value in
                         self.values.items())  # fmt: skip


class Space:
    """A recipe's tree, from which candidates become runs."""

    def __init__(self, path: Path) -> None:
        """Raises UsageError or RecipeError."""
        problems = Problems()
        try:
            tree = Files(problems).read(path)
        except Refused as refused:
            problems.add(refused.place, refused.text)
            raise RecipeError(problems.sorted()) from None
        self.recipe = of_tree(tree, problems)
        self._tree = tree
        if self.recipe.data.validation == "none":
            raise UsageError(f"{path}: data.validation: none leaves no rows to judge a learning rate by")

    def of(self, candidate: Candidate) -> Recipe:
        """The recipe with a candidate's values, otherwise as it is."""
        tree = self._with_method(candidate.method)
        for key, value in candidate.values.items():
            if key != METHOD:
                tree = set_key(tree, key, Node(value, PLACE), PLACE)
        return of_tree(tree, Problems())

    def rate_of(self, method: str | None) -> float:
        """The rate in the middle: the recipe's, or for another method its own."""
        if method is None:
            return self.recipe.training.learning_rate
        factor = registry.rate_factor(self.recipe.training.objective.name)
        return registry.default_rate([method]).value * factor

    def job(self, candidate: Candidate, steps: int, full: int, out: Path) -> Job:
        """A run of so many steps. Of `full` steps it has the recipe's own length."""
        tree = self._with_method(candidate.method)
        for section, values in OWN.items():
            node = from_python(values, section)
            micro = self.recipe.evaluation.micro_batch_size if section == "evaluation" else None
            if micro is not None:
                node = node.with_child("micro_batch_size", Node(micro, PLACE))
            tree = tree.with_child(section, node, PLACE)
        if steps < full:
            tree = set_key(tree, STEPS, Node(steps, PLACE), PLACE)
            if (warmup := self.recipe.training.warmup_steps) is not None:  # as long as it is in the whole run
                scaled = min(math.ceil(warmup * steps / full), steps - 1)
                tree = set_key(tree, WARMUP, Node(scaled, PLACE), PLACE)
        given = {key: value for key, value in candidate.values.items() if key != METHOD}
        point = Point({key: Node(value, PLACE) for key, value in given.items()}, dict.fromkeys(given, PLACE))
        name = " ".join(filter(None, (candidate.method, f"{steps} steps,")))
        variant = Variant(name, tree, (point,), RANK in given)
        folder = out / "runs" / f"{steps}-steps" / (candidate.method or "") / point.folder
        seed = self.recipe.training.seed
        return Job(variant, point, seed, folder, *variant.recipe(point, seed=seed, output=folder))

    def _with_method(self, method: str | None) -> Node:
        """The tree with another method, without the options of the first."""
        adapter = self._tree.child("adapter")
        if method is None or adapter is None:
            return self._tree
        without = self._tree.with_child("adapter", adapter.with_child("method", None))
        return set_key(without, METHOD, Node(method, PLACE), PLACE)


def rounded(rate: float) -> float:
    """To two digits: what a person would write."""
    return float(f"{rate:.1e}")


def rates_around(middle: float) -> list[float]:
    """Rates by rising value, the middle one exactly."""
    return [middle if n == 0 else rounded(middle * RATIO**n) for n in range(-EACH_SIDE, EACH_SIDE + 1)]


def beyond(rates: Sequence[float], best: float) -> float | None:
    """The rate outside of the range where `best` lies on its border; None where it does not."""
    if best == max(rates):
        return rounded(best * RATIO)
    return rounded(best / RATIO) if best == min(rates) else None


def read_over(given: Sequence[str], recipe: Recipe) -> dict[str, list[Any]]:
    """{"rank": ranks, "method": methods} of `--over rank`, `--over rank=4,16` and `--over method=lora,dora`.

    Ranks by default: half of the recipe's, its own, and twice. Raises UsageError.
    """
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        words = [word.strip() for word in values.split(",") if word.strip()]
        if key not in ("rank", "method") or (equals and not words):
            raise UsageError(f"--over {text}: expected rank, rank=4,16 or method=lora,dora")
        if key == "rank":
            own = recipe.adapter.rank
            found[key] = _ranks(words) if words else sorted({max(1, own // 2), own, 2 * own})
        else:
            found[key] = _methods(words)
    return found


def _ranks(words: Sequence[str]) -> list[int]:
    wrong = [word for word in words if not word.isdigit() or not int(word)]
    if wrong:
        raise UsageError(f"--over rank: {wrong[0]} is not a rank")
    return sorted({int(word) for word in words})


def _methods(words: Sequence[str]) -> list[str]:
    known = {*registry.methods(), *registry.PRESETS}
    if not words:
        raise UsageError("--over method: say which, as in --over method=lora,dora", "`lrft methods` lists them.")
    if wrong := [word for word in words if word not in known]:
        close = nearest(wrong[0], known)
        raise UsageError(f"--over method: {wrong[0]} is not a method", f"Did you mean {close[0]}?" if close else None)
    return list(dict.fromkeys(words))


def read_rates(text: str) -> list[float]:
    """`1e-5,1e-4` by rising value. Raises UsageError."""
    try:
        rates = sorted({float(word) for word in text.split(",") if word.strip()})
    except ValueError:
        rates = []
    if len(rates) < 2 or min(rates) <= 0 or not all(map(math.isfinite, rates)):
        raise UsageError(f"--rates: expected two or more numbers above 0, such as 1e-5,1e-4,1e-3 (got {text})")
    return rates


def make_candidates(space: Space, rates: Sequence[float] | None, over: Mapping[str, Sequence[Any]]) -> list[Candidate]:
    """Every rate of every rank and method. Raises RecipeError for a combination that no recipe may have."""
    made = [
        Candidate(rate, rank, method)
        for method in over.get("method", [None])
        for rank in over.get("rank", [None])
        for rate in rates or rates_around(space.rate_of(method))
    ]
    for first in {one.group: one for one in made}.values():
        space.of(first)
    return made


def at_rate(candidate: Candidate, rate: float) -> Candidate:
    return replace(candidate, rate=rate)

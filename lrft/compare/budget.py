"""Parameter matching: each method's rank with the trainable-parameter count closest to the baseline's.

Counted on the real model's layers, without its weights: the adapters of each shape are built on the meta device. What
is trained beside the adapters counts as well, of all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lrft import registry
from lrft.adapters import beside, compose
from lrft.adapters.adapter import Site
from lrft.adapters.attach import count_trained, select_sites
from lrft.adapters.reach import uncalled
from lrft.compare.config import Comparison
from lrft.compare.grid import Point, Variant
from lrft.errors import Problem, RecipeError
from lrft.loading.from_recipe import find_base, skeleton_for, tokens_for
from lrft.recipe import AdapterSection, Recipe

GAP = 64
"""consecutive ranks that a method may reject (e.g. it accepts only multiples of 16) before the search stops"""

Count = Callable[[int], int | None]
"""rank -> trainable parameters, or None where the method rejects the rank"""


@dataclass(frozen=True)
class Choice:
    """What one run trains at one point of the grid."""

    rank: int
    trained: int
    baseline: int
    """trainable parameters of the baseline"""
    chosen: bool
    """whether the budget chose the rank"""
    fixed: bool
    """whether the count is the same at every rank"""
    knobs: tuple[str, ...]
    """if fixed: the method's options that change the count"""
    beside: int
    """trainable parameters beside the adapters, which `trained` has too"""

    @property
    def deviation(self) -> float:
        """Trainable parameters relative to the baseline's, minus one."""
        return self.trained / self.baseline - 1

    @property
    def note(self) -> str:
        """What is to be said beside the rank."""
        if self.fixed:
            size = f"; its size: {', '.join(self.knobs)}" if self.knobs else ""
            return f"does not depend on the rank{size}"
        return "chosen" if self.chosen else ""


class Counter:
    """Counts trainable parameters; caches model skeletons."""

    def __init__(self) -> None:
        self._skeletons: dict[str, Any] = {}
        self._uncalled: dict[str, Mapping[str, str]] = {}
        self._tokens: dict[str, list[int]] = {}

    def count(self, recipe: Recipe, rank: int, options: dict[str, dict[str, Any]] | None = None) -> int:
        """At a rank. options: by method, in place of the recipe's. Raises RecipeError."""
        adapter: AdapterSection = recipe.adapter.model_copy(update={"rank": rank})
        composition = compose.compose((e.name, (options or {}).get(e.name, e.options)) for e in adapter.method)
        sites = self.sites(recipe, adapter, composition)
        more = self.beside(recipe, sites)
        with torch.device("meta"):
            return count_trained(sites, composition, recipe.where) + more

    def beside(self, recipe: Recipe, sites: Sequence[Site] | None = None) -> int:
        """What is trained beside the adapters of these sites; None: of the recipe's own. Raises RecipeError."""
        if sites is None:
            sites = self.sites(recipe, recipe.adapter, compose.compose_section(recipe.adapter))
        skeleton, tokens = self.skeleton(recipe), self.tokens(recipe)
        names = beside.names_for(skeleton, recipe.adapter, [site.name for site in sites], recipe.where, tokens)
        return beside.count_trained(skeleton, names)

    def largest_rank(self, recipe: Recipe) -> int:
        """The smaller side of the widest adapted layer: no update has a higher rank."""
        composition = compose.compose_section(recipe.adapter)
        sites = self.sites(recipe, recipe.adapter, composition)
        return max(min(site.d, site.k) for site in sites)

    def sites(self, recipe: Recipe, adapter: AdapterSection, composition: compose.Composition) -> list[Site]:
        skeleton, key = self.skeleton(recipe), self.key(recipe)
        if key not in self._uncalled:
            self._uncalled[key] = uncalled(skeleton)
        return select_sites(skeleton, adapter, composition, recipe.where, self._uncalled[key])

    def skeleton(self, recipe: Recipe) -> Any:
        key = self.key(recipe)
        if key not in self._skeletons:
            self._skeletons[key] = skeleton_for(recipe, find_base(recipe))
        return self._skeletons[key]

    def tokens(self, recipe: Recipe) -> list[int]:
        """Ids of the tokens whose rows are trained."""
        key = f"{self.key(recipe)} {recipe.adapter.train_tokens!r}"
        if key not in self._tokens:
            self._tokens[key] = tokens_for(recipe, find_base(recipe))
        return self._tokens[key]

    def key(self, recipe: Recipe) -> str:
        """What the shapes of a recipe's model follow from."""
        model, objective = recipe.model, recipe.training.objective
        return f"{model.name} {model.revision} {model.add_tokens!r} {objective!r}"


def choose(comparison: Comparison) -> list[Choice]:
    """For each point of each variant in turn. Raises RecipeError with everything that does not fit the model."""
    counter, seed = Counter(), comparison.seeds[0]

    def recipe_of(variant: Variant, point: Point) -> Recipe:
        return variant.recipe(point, seed=seed, output=comparison.output)[0]

    first = comparison.first_recipe()
    target = counter.count(first, first.adapter.rank)
    found, problems = [], list[Problem]()
    for variant in comparison.variants:
        known: dict[str, Choice] = {}  # most keys of a grid change nothing about the adapters
        for point in variant.points:
            recipe = recipe_of(variant, point)
            key = f"{recipe.model!r} {recipe.adapter!r}"
            free = not variant.gives_rank and variant.name != comparison.baseline
            try:
                if key not in known:
                    known[key] = _choice(counter, recipe, comparison.budget if free else "none", target, first)
                found.append(known[key])
            except RecipeError as error:
                problems += error.problems
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return found


def _choice(counter: Counter, recipe: Recipe, budget: str, target: int, first: Recipe) -> Choice:
    def count(rank: int) -> int | None:
        try:
            return counter.count(recipe, rank)
        except RecipeError:
            return None

    rank = first.adapter.rank if budget == "rank" else recipe.adapter.rank
    found = nearest_rank(count, target, counter.largest_rank(recipe)) if budget == "parameters" else None
    if found is None:
        found = rank, counter.count(recipe, rank)  # a refusal is the user's to know
    others = {count(other) for other in (1, rank + 1, 2 * rank, 4 * rank) if other != found[0]} - {None}
    if others == {found[1]}:
        knobs = size_knobs(counter, recipe, rank, found[1])
        return Choice(rank, found[1], target, False, True, knobs, counter.beside(recipe))
    return Choice(*found, target, budget != "none", False, (), counter.beside(recipe))


def nearest_rank(count: Count, target: int, largest: int) -> tuple[int, int] | None:
    """The rank from 1 to `largest` whose count is nearest to `target`, the smaller of two, with its count.

    The count rises with the rank, or falls (randlora: the higher the rank, the fewer bases); where it does neither
    throughout, a rank close by may be nearer. None when every rank is refused.
    """
    known: dict[int, int | None] = {}

    def at(rank: int) -> int | None:
        if rank not in known:
            known[rank] = count(rank)
        return known[rank]

    def upwards(rank: int) -> int | None:
        """The first rank from here that the method takes."""
        return next((r for r in range(rank, min(rank + GAP, largest + 1)) if at(r) is not None), None)

    def downwards(rank: int) -> int | None:
        """The first rank from here down that the method takes."""
        return next((r for r in range(rank, max(0, rank - GAP), -1) if at(r) is not None), None)

    # Neighbouring ranks can have one count, so the ends are looked at as well.
    spread = [*(upwards(2**n) for n in range(largest.bit_length())), downwards(largest)]
    counts = [trained for rank in spread if rank is not None and (trained := at(rank)) is not None]
    falls = next((trained < counts[0] for trained in counts if trained != counts[0]), False)

    def enough(rank: int) -> bool:
        taken = upwards(rank)
        trained = 0 if taken is None else at(taken) or 0
        return taken is None or (trained <= target if falls else trained >= target)

    low, high = 0, 1  # not enough at low, enough at high
    while high <= largest and not enough(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if middle > largest or enough(middle) else (middle, high)
    ranks = [rank for rank in (downwards(min(high, largest + 1) - 1), upwards(high)) if rank is not None]
    found = [(rank, trained) for rank in ranks if (trained := at(rank)) is not None]
    return min(found, key=lambda one: (abs(one[1] - target), one[0])) if found else None


def size_knobs(counter: Counter, recipe: Recipe, rank: int, start: int) -> tuple[str, ...]:
    """The options of the recipe's methods that change the count: found out by changing each number."""
    found = []
    for entry in recipe.adapter.method:
        for knob in registry.methods()[entry.name].knobs:
            value = entry.options[knob.name]
            if type(value) is not int and type(value) is not float:
                continue
            for other in (value * 2, value // 2 if type(value) is int else value / 2):
                try:
                    registry.methods()[entry.name].validate(entry.options | {knob.name: other})
                    changed = counter.count(recipe, rank, {entry.name: entry.options | {knob.name: other}}) != start
                except (RecipeError, ValueError):
                    continue
                if changed:
                    found.append(f"{entry.name}.{knob.name} {value}")
                    break
    return tuple(found)

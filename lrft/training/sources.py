"""The entries of data.train: names of their losses, and what a run draws of those that have shares of the steps."""

from __future__ import annotations

from collections import Counter
from pathlib import PurePath
from typing import Any

import numpy as np

from lrft.data.sampler import rows_drawn
from lrft.recipe import Recipe
from lrft.runs.metrics import LOSS_OF
from lrft.training.state import Inputs
from lrft.utils.text import count


def names(recipe: Recipe) -> list[str]:
    """The entries by the last parts of their paths, or by the whole where two share one."""
    paths = [recipe.masked(entry.path) for entry in recipe.data.train]
    last = [PurePath(path).name or path for path in paths]
    twice = Counter(last)
    short = [name if twice[name] == 1 else path for name, path in zip(last, paths, strict=True)]
    again = Counter(short)
    return [name if again[name] == 1 else f"{k}: {name}" for k, name in enumerate(short)]


def losses_of(recipe: Recipe) -> tuple[str, ...]:
    """The figure of a step for each entry that is its training loss; empty for one entry."""
    return tuple(f"{LOSS_OF}{name}" for name in names(recipe)) if len(recipe.data.train) > 1 else ()


def drawn(recipe: Recipe, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """{entry: {"rows": it has, "drawn": rows of the run, repeated ones counted again}}; empty without weights."""
    if inputs.batches.mixture is None:
        return {}
    has = [len(ids) for ids in inputs.batches.mixture.members]
    taken = rows_drawn(inputs.train, inputs.batches).tolist()
    return {name: {"rows": n, "drawn": d} for name, n, d in zip(names(recipe), has, taken, strict=True)}


def lines(recipe: Recipe, inputs: Inputs) -> list[str]:
    """How much of each entry the run trains on, in words."""
    found = drawn(recipe, inputs)
    total = sum(entry["drawn"] for entry in found.values())
    return [
        f"{name}: {entry['drawn'] / total:.1%} of the rows, {count(entry['drawn'], 'row')} from {entry['rows']:,}"
        for name, entry in found.items()
    ]


def members(recipe: Recipe, inputs: Inputs) -> dict[str, np.ndarray]:
    """{entry: its validation rows, int64} of those that have some; empty without weights, or where only one has."""
    rows = inputs.validation
    if inputs.batches.mixture is None or rows is None:
        return {}
    ids = {name: np.flatnonzero(rows.entries == k) for k, name in enumerate(names(recipe))}
    held = {name: found for name, found in ids.items() if len(found)}
    return held if len(held) > 1 else {}

"""Auxiliary rows: those that a part asks for beside the rows of each step (`Part.auxiliary_rows`)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from lrft import data, registry
from lrft.adapters.compose import compose_section
from lrft.adapters.part import Part
from lrft.errors import Problem, RecipeError
from lrft.model.load import embedding_rows, load_config, position_limit
from lrft.model.weights import cache_dir
from lrft.recipe import Recipe


def with_auxiliary(prepared: data.Prepared, recipe: Recipe, source: Path, tokenizer: Any) -> data.Prepared:
    """The rows of a run and those that its parts ask for. Raises DataError for rows that cannot be used, RecipeError
    when a part's options lack their file. source: the base's folder."""
    owner = compose_section(recipe.adapter).gradient_owner
    wanted = None if owner is None else wanted_by(owner, recipe)
    if wanted is None:
        return prepared
    if isinstance(wanted, float):
        if prepared.stream is not None:
            text = "data.streaming: adapter.method sets a share of the rows apart, which a stream has not"
            raise RecipeError([Problem(recipe.where("data.streaming"), text)])
        return data.with_rows_apart(prepared, wanted, seed=recipe.training.seed)
    config = load_config(source, trust_remote_code=recipe.model.trust_remote_code)
    rows, report = data.prepare_file(
        wanted,
        recipe.data,
        tokenizer,
        seed=recipe.training.seed,
        limit=position_limit(config),
        where=recipe.where,
        cache=cache_dir() if recipe.data.cache else None,
        kind=registry.rows_of(*recipe.training.objective),
    )
    data.refuse_missing_rows((rows,), embedding_rows(config), tokenizer)
    rows.rename(recipe.masked)
    return replace(prepared, auxiliary=rows, key=hashlib.sha256(f"{prepared.key} {report.key}".encode()).hexdigest())


def wanted_by(owner: Part, recipe: Recipe) -> float | str | None:
    try:
        return owner.auxiliary_rows
    except ValueError as error:
        problem = Problem(recipe.where("adapter.method"), f"adapter.method: {owner.name} {error}")
        raise RecipeError([problem]) from None

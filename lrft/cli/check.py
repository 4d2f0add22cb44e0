"""`lrft check`: check a recipe without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import (
    AsJson,
    Overrides,
    RecipePath,
    as_written,
    loading,
    read_recipe,
    refuse_missing,
    refuse_unready,
)
from lrft.errors import Problem, RecipeError
from lrft.utils.text import Row, amount

if TYPE_CHECKING:
    from lrft.recipe import Recipe


def check(
    recipe: RecipePath,
    overrides: Overrides = None,
    static: Annotated[bool, typer.Option("--static", help="Check the recipe only, without model or data.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe without training.

    Reads tokenizer and data, and builds the model without its weights.

    Example: lrft check recipe.yaml adapter.rank=8
    """
    from lrft.loading.packages import refuse_missing_packages

    loaded = read_recipe(recipe, overrides)
    if static:
        with answering(as_json) as reporter:
            reporter.line(f"{recipe}: recipe OK (model and data not checked; drop --static to check them)")
        return
    refuse_missing(loaded)
    refuse_missing_packages(loaded)
    with as_written(loaded):
        check_all(loaded, recipe, as_json)


def check_all(recipe: Recipe, path: Path, as_json: bool = False) -> None:
    """Print a summary of the recipe. Raises a subclass of LrftError for the first problem."""
    with loading():
        import torch

        from lrft.adapters import beside, targets
        from lrft.adapters.attach import (
            composed_with,
            composition_warnings,
            count_trained,
            rows_warnings,
            select_sites,
        )
        from lrft.adapters.reach import uncalled
        from lrft.export.merge import unmergeable
        from lrft.export.merge_places import names_in
        from lrft.loading.from_recipe import (
            added_by,
            find_base,
            head_for,
            load_data,
            load_sets,
            objective_of,
            tokens_for,
        )
        from lrft.loading.metrics import refuse_unfit_metrics
        from lrft.loading.no_effect import refuse_without_effect
        from lrft.loading.optimizer import rate_hint, refuse_optimizer
        from lrft.loading.others import find_others
        from lrft.model import linear
        from lrft.model.load import load_skeleton
        from lrft.model.stored import Stored
        from lrft.model.weights import weight_files
        from lrft.runs.after_training import shown

    refuse_unready(recipe)
    refuse_optimizer(recipe, torch.cuda.is_available())
    source = find_base(recipe)
    tokenizer, prepared = load_data(recipe, source)
    refuse_without_effect(recipe, prepared)
    head = head_for(recipe, prepared, tokenizer, source)
    skeleton = load_skeleton(source, recipe.model.trust_remote_code, head, added_by(recipe, source))
    weights = weight_files(source)
    stored = Stored(skeleton, names_in(weights))  # asked while the modules are those that transformers knows
    composition = composed_with(recipe.adapter, tokenizer, recipe.where)
    passed_over = uncalled(skeleton)
    left_out = targets.choose(skeleton, recipe.adapter, recipe.where, passed_over).lines()
    sites = select_sites(skeleton, recipe.adapter, composition, recipe.where, passed_over)
    names = beside.names_for(
        skeleton, recipe.adapter, [site.name for site in sites], recipe.where, tokens_for(recipe, source)
    )
    trained = count_trained(sites, composition, recipe.where) + beside.count_trained(skeleton, names)
    reason = unmergeable(sites, stored, weights)
    if reason and recipe.after.merge:
        text = f"after.merge: merging into this base is not possible: {reason}"
        raise RecipeError([Problem(recipe.where("after.merge"), text)])
    load_sets(recipe, source, tokenizer, list(prepared.report.labels) or None)
    objective = objective_of(recipe)
    refuse_unfit_metrics(recipe, objective, objective.module(skeleton))
    others = find_others(recipe, source, tokenizer, prepared.train)
    of_rows = rows_warnings(composition, prepared.train, recipe.where)
    everything = sum(p.numel() for p in skeleton.parameters())
    linears = sum(1 for _ in linear.named_linears(skeleton))
    modules = " ".join(targets.module_names(site.name for site in sites))
    adapter = [
        f"{len(sites)} of {linears} linear layers: {modules}",
        *names.lines(),
        f"{amount(trained, 2)} trainable parameters ({trained / (everything + trained):.2%})",
        *(f"left out: {line}" for line in left_out),
    ]
    after: list[Row] = [("after", shown(recipe))] if shown(recipe) else []
    with answering(as_json) as reporter:
        reporter.table(
            [
                ("model", [recipe.masked(recipe.model.name), f"{amount(everything)} parameters"]),
                *((other.option, [other.name]) for other in others),
                ("adapter", adapter),
                ("data", prepared.report.lines()),
                *after,
            ]
        )
        for text in (*rate_hint(recipe), *composition_warnings(composition, sites, skeleton), *of_rows):
            reporter.warn(text)
        if reason:
            reporter.warn(f"merging into this base is not possible: {reason}")
        reporter.line(f"{path}: OK")

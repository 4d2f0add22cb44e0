"""Tokenizer, data and base model of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lrft import data, registry
from lrft.adapters.beside import token_ids
from lrft.errors import DataError, Problem, RecipeError
from lrft.loading.auxiliary import with_auxiliary
from lrft.model import load
from lrft.model.added_tokens import Added, add_tokens
from lrft.model.head import Head
from lrft.model.hub import find_model
from lrft.model.load import embedding_rows, load_config, position_limit
from lrft.model.placement import RESIDENT, load_for
from lrft.model.weights import cache_dir
from lrft.objectives.base import Asked, Objective
from lrft.recipe import Named, Recipe
from lrft.utils import hardware


def base_name(recipe: Recipe) -> str:
    """The base as files name it: a path as the recipe writes it, with ${NAME}. A hub id is public."""
    name = recipe.model.name
    return recipe.masked(name) if Path(name).expanduser().exists() else name


def made(named: Named, kind: str) -> Any:
    """What a recipe names of a registry, with its options."""
    return registry.declared(kind)[named.name].load()(**named.options)


def objective_of(recipe: Recipe) -> Objective:
    """The recipe's objective, with its options."""
    objective: Objective = made(recipe.training.objective, "objectives")
    return objective


def head_for(recipe: Recipe, prepared: data.Prepared, tokenizer: Any, source: Path) -> Head | None:
    """The head that the recipe's objective trains, for its data; None for a language model. Raises RecipeError.

    source: the base's folder.

    The tokenizer gets a padding token where it has none: a decoder's head looks for the last token that is another one.
    """
    objective = objective_of(recipe)
    if not objective.head:
        return None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise DataError("the tokenizer has neither a padding nor an end token, so rows cannot be padded")
    config = load_config(source, trust_remote_code=recipe.model.trust_remote_code)
    asked = Asked(prepared.report, prepared.train, tokenizer.pad_token_id, recipe.training.seed, source, config)
    try:
        return objective.head_for(asked)
    except ValueError as error:
        raise RecipeError([Problem(recipe.where("training.objective"), f"training.objective: {error}")]) from None


def sketched_head(recipe: Recipe, labels: Iterable[str] = ("0", "1")) -> Head | None:
    """The same for whoever looks at shapes alone. labels: of the data; two for whoever has no data."""
    kind = registry.head_of(recipe.training.objective.name)
    return Head(kind, tuple(labels)) if kind else None


def skeleton_for(recipe: Recipe, source: Path) -> Any:
    """The recipe's model without its weights, with its new tokens and the head of its objective, for which the rows are
    read: they say which labels there are. source: the base's folder. Raises as `load_data` does."""
    head = None
    if registry.head_of(recipe.training.objective.name):
        head = sketched_head(recipe, load_data(recipe, source)[1].report.labels)
    return load.load_skeleton(source, recipe.model.trust_remote_code, head, added_by(recipe, source))


def find_base(recipe: Recipe) -> Path:
    """The folder of the recipe's base model. Raises MissingError."""
    return find_model(recipe.model.name, recipe.model.revision, where=recipe.where("model.name"))


def load_data(recipe: Recipe, source: Path) -> tuple[Any, data.Prepared]:
    """(tokenizer, tokenised rows) of a recipe. source: the base's folder."""
    tokenizer = load_recipe_tokenizer(recipe, source)
    prepared = prepare_data(recipe, source, tokenizer)
    return tokenizer, with_auxiliary(prepared, recipe, source, tokenizer)


def load_recipe_tokenizer(recipe: Recipe, source: Path) -> Any:
    """The base's tokenizer with the recipe's chat template and its options as default: saved with every result."""
    tokenizer = load.load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    add_to(tokenizer, recipe)
    template = data.resolve_chat_template(recipe.data, tokenizer, where=recipe.where)
    data.require_options(recipe.data.template_options, template, recipe.where)
    if template is not None:
        made = data.with_options(template, recipe.data.template_options)
        tokenizer.chat_template = data.with_template(tokenizer, made)
    return tokenizer


def add_to(tokenizer: Any, recipe: Recipe) -> Added | None:
    """Give a tokenizer of the base the recipe's new tokens, in place; None for a recipe without. Raises RecipeError."""
    if not recipe.model.add_tokens:
        return None
    try:
        return add_tokens(tokenizer, [(new.token, new.special) for new in recipe.model.add_tokens])
    except ValueError as error:
        raise RecipeError([Problem(recipe.where("model.add_tokens"), f"model.add_tokens: {error}")]) from None


def added_by(recipe: Recipe, source: Path) -> Added | None:
    """The recipe's new tokens with their ids. source: the base's folder."""
    if not recipe.model.add_tokens:
        return None
    return add_to(load.load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code), recipe)


def tokens_for(recipe: Recipe, source: Path) -> list[int]:
    """Ids of the tokens whose rows the recipe trains. Raises RecipeError."""
    if not recipe.adapter.train_tokens:
        return []
    tokenizer = load.load_tokenizer(source, trust_remote_code=recipe.model.trust_remote_code)
    added = add_to(tokenizer, recipe)
    return token_ids(recipe.adapter, tokenizer, () if added is None else added.ids.values(), recipe.where)


def rows_for(recipe: Recipe, config: Any, tokenizer: Any) -> int | None:
    """How many tokens the model will have an embedding for; None when its configuration does not say."""
    rows, new = embedding_rows(config), [new.token for new in recipe.model.add_tokens]
    return rows if rows is None or not new else max(rows, *(i + 1 for i in tokenizer.convert_tokens_to_ids(new)))


def prepare_data(recipe: Recipe, source: Path, tokenizer: Any) -> data.Prepared:
    """The rows of a run. Raises what `data.prepare` does, and DataError for tokens that the model does not have."""
    config = load_config(source, trust_remote_code=recipe.model.trust_remote_code)
    prepared = data.prepare(
        recipe.data,
        tokenizer,
        seed=recipe.training.seed,
        limit=position_limit(config),
        where=recipe.where,
        cache=cache_dir(),
        kind=registry.rows_of(*recipe.training.objective),
    )
    prepared.rename(recipe.masked)
    data.refuse_missing_rows((prepared.train, prepared.validation), rows_for(recipe, config, tokenizer), tokenizer)
    refuse_unread_columns(prepared, recipe.training.objective.name)
    return prepared


# Columns that some objectives read -> the class variable by which they say so, and whether rows have such a column.
READ_BY_SOME: dict[str, tuple[str, Callable[[data.Rows], bool]]] = {
    "weight": ("weighs_rows", lambda rows: rows.weighted),
    "margin": ("reads_margins", lambda rows: "margin" in rows.names),
}


def refuse_unread_columns(prepared: data.Prepared, objective: str) -> None:
    """Raise DataError for rows with weights or margins under an objective that does not look at them."""
    cards = registry.declared("objectives")
    for column, (variable, has) in READ_BY_SOME.items():
        if cards[objective].facts.get(variable, False):
            continue
        if any(rows is not None and has(rows) for rows in (prepared.train, prepared.validation)):
            readers = " or ".join(name for name, card in cards.items() if card.facts.get(variable, False))
            raise DataError(
                f"rows have a column {column}, which training.objective: {objective} does not count",
                f"Leave it out with data.train[].columns: {{{column}: none}}, or take training.objective: {readers}.",
            )


def load_sets(recipe: Recipe, source: Path, tokenizer: Any, labels: Sequence[str] | None) -> dict[str, data.Rows]:
    """The rows of evaluation.sets, read as validation data are. labels: of a head that tells classes apart. Raises as
    `prepare_data` does."""
    config = load_config(source, trust_remote_code=recipe.model.trust_remote_code)
    objective = recipe.training.objective
    found = {}
    for name, path in recipe.evaluation.sets.items():
        found[name], _ = data.prepare_file(
            path,
            recipe.data,
            tokenizer,
            seed=recipe.training.seed,
            limit=position_limit(config),
            where=recipe.where,
            cache=cache_dir() if recipe.data.cache else None,
            kind=registry.rows_of(*objective),
            labels=labels if registry.head_of(objective.name) else None,
        )
        found[name].rename(recipe.masked)
    data.refuse_missing_rows(tuple(found.values()), rows_for(recipe, config, tokenizer), tokenizer)
    return found


def load_recipe_model(
    recipe: Recipe, source: Path, dtype: str, head: Head | None = None, placement: str = RESIDENT
) -> Any:
    """The base where it is read from. placement: that it gets by `lrft.model.placement.place`"""
    return load_for(
        placement,
        source,
        dtype=hardware.DTYPES[dtype],
        quantization=recipe.model.quantization,
        attention=recipe.model.attention,
        trust_remote_code=recipe.model.trust_remote_code,
        head=head,
        added=added_by(recipe, source),
    )

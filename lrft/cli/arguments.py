"""Shared arguments and preparation of commands."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.errors import LrftError, UsageError

if TYPE_CHECKING:
    from lrft.recipe import Recipe

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys of the recipe: adapter.rank=8, ~data.validation."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Base = Annotated[str | None, typer.Option(help="Path of the base model, if it has moved since training.")]


def one_of(option: str, value: str | None, choices: Collection[str]) -> None:
    """Raises UsageError when `value` is given and is not one of `choices`."""
    if value is not None and value not in choices:
        raise UsageError(f"{option} must be one of {', '.join(choices)} (got {value})")


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe at `path`, or the one that a run folder was made with. Raises RecipeError or UsageError."""
    from lrft import recipe as recipes

    if path.is_dir():
        if not (path / "resolved.yaml").is_file():
            raise UsageError(f"{path} is not a run folder (no resolved.yaml)")
        path = path / "resolved.yaml"
    return recipes.load(path, tuple(overrides or ()))


def refuse_missing(recipe: Recipe) -> None:
    """Raises MissingError for a package that the recipe needs and that is not installed, before anything is loaded."""
    from lrft.model import load

    load.refuse_missing(recipe.model.quantization, recipe.where("model.quantization"))


def loading() -> AbstractContextManager[None]:
    """Around the imports of torch, transformers and of what imports them."""
    from lrft.model.load import importing

    return importing()


@contextmanager
def as_written(recipe: Recipe) -> Iterator[None]:
    """Errors name what came from the environment as the recipe does: ${NAME}."""
    try:
        yield
    except LrftError as error:
        error.rewrite(recipe.masked)
        raise

"""Shared arguments and preparation of commands."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.error_output import say
from lrft.errors import DataError, LrftError, UsageError, nearest

if TYPE_CHECKING:
    from lrft.recipe import Recipe
    from lrft.registry import Declaration

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, or a run folder.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Override keys of the recipe: adapter.rank=8, ~data.validation."),
]
TargetPath = Annotated[str, typer.Argument(metavar="RUN|ADAPTER|MODEL", help="Run, adapter or model.")]
TrustRemoteCode = Annotated[bool, typer.Option("--trust-remote-code", help="Allow the model's own Python code to run.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token; higher is more random.")]
TopP = Annotated[float, typer.Option(min=0, max=1, help="Draw only from the likeliest tokens with this share.")]
Seed = Annotated[int, typer.Option(help="Of the drawing; the same seed gives the same answers.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Base = Annotated[str | None, typer.Option(help="Path of the base model, if it has moved since training.")]


def one_of(option: str, value: str | None, choices: Collection[str]) -> None:
    """Raises UsageError when `value` is given and is not one of `choices`."""
    if value is not None and value not in choices:
        raise UsageError(f"{option} must be one of {', '.join(choices)} (got {value})")


def read_options(card: Declaration, label: str, given: Sequence[str]) -> dict[str, Any]:
    """All options of `card` from OPTION=VALUE words. label: how messages name it. Raises UsageError."""
    from pydantic import ValidationError

    from lrft.recipe.yaml_scalars import resolve

    known = [knob.name for knob in card.knobs]
    values: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        if not equals or name not in known:
            close = nearest(name, known)
            hint = f"Did you mean {close[0]}=...?" if close else f"It takes {', '.join(known) or 'no options'}."
            raise UsageError(f"{label} has no option {word}", hint)
        try:
            values[name] = resolve(text)
        except ValueError as error:
            raise UsageError(f"{label}: {name}: {error}") from None
    try:
        return card.validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{label}: {first['loc'][0]}: {first['msg'].lower()} (got {first['input']})") from None


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe at `path`, or the one that a run folder was made with. Raises RecipeError or UsageError."""
    from lrft import recipe as recipes

    if path.is_dir():
        if not (path / "resolved.yaml").is_file():
            raise UsageError(f"{path} is not a run folder (no resolved.yaml)")
        path = path / "resolved.yaml"
    return recipes.load(path, tuple(overrides or ()))


def refuse_missing(recipe: Recipe) -> None:
    """Raises MissingError for a package that the recipe needs and that is not installed, RecipeError for rows that
    its objective does not take, and DataError for a set of evaluation.sets that is not there, before anything is
    loaded."""
    from lrft import registry
    from lrft.data.readers import find
    from lrft.data.suggest import refuse_unfit
    from lrft.model import load

    load.refuse_missing(recipe.model.quantization, recipe.where("model.quantization"))
    refuse_unfit(recipe.data, registry.rows_of(*recipe.training.objective), recipe.where)
    for name, path in recipe.evaluation.sets.items():
        key = f"evaluation.sets.{name}"
        try:
            find(path, "validation")
        except DataError as error:
            raise DataError(f"{recipe.where(key)}  {key}: {error.message}", error.hint) from error


def refuse_unready(recipe: Recipe) -> None:
    """Raises MissingError for a program that an exporter of `after` needs, and DataError for rows of `after.eval` that
    are not there. Imports torch where there are exporters."""
    from lrft import registry
    from lrft.data.files import is_remote
    from lrft.data.readers import find

    for path in recipe.after.eval:
        if not is_remote(path) and not path.startswith("hub:"):
            find(path)
    for chosen in recipe.after.export:
        registry.declared("exporters")[chosen.name].load()(**chosen.options).ready()


def refuse_missing_base(base: str | None) -> None:
    """Raises MissingError where --base names a folder or file that is not there, before anything is loaded."""
    from lrft.model.hub import find_model

    if base is not None and not base.lower().endswith(".gguf"):  # such a file is converted when it is found
        find_model(base, where="--base")


def typed() -> str:
    """The command that is running, as it can be pasted into a shell."""
    return shlex.join(["lrft", *sys.argv[1:]])


def adapter_in(target: str) -> Path | None:
    """The adapter folder that is meant by a run or an adapter; None for a model. Raises UsageError."""
    from lrft.runs.locate import adapter_folder
    from lrft.utils.adapter_folders import is_peft_folder

    path = Path(target)
    ours = (path / "run.json").is_file() or (path / "lrft.json").is_file() or is_peft_folder(path)
    return adapter_folder(path) if ours else None


def tell_choice(source: Path, adapter: Path) -> None:
    """On the standard error: why the adapter that is taken from the run `source` is not a best one."""
    from lrft.runs.locate import choice_note

    if note := choice_note(source, adapter):
        say(f"warning: {note}")


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

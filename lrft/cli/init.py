"""`lrft init`: a commented recipe to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.errors import UsageError, nearest
from lrft.utils.text import Row, command

if TYPE_CHECKING:
    from lrft.data.suggest import Suggestion

SHORT = """\
# {check} finds what is wrong with this recipe.
# Every key with its default: lrft init --full. One key explained: lrft schema adapter.rank
# For an editor: lrft schema > lrft.schema.json, and a comment "yaml-language-server: $schema=lrft.schema.json".

# A folder, a hub id, or a .gguf file.
model: {model}
# Rows in .jsonl, .json, .csv, .parquet or .txt, a folder of such files, or hub:OWNER/NAME.
{data}
adapter:
  method: {method}  # see lrft methods; several combine: [lora, rslora, lora+]
  rank: 16
training:
{objective}  epochs: 3
  global_batch_size: 32  # rows per optimiser step, over all devices
  learning_rate: {rate}
output_dir: runs/first
"""


def init(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe to write.")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="Base model: a folder, a hub id or a .gguf file.")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Training rows: a file, a folder or hub:OWNER/NAME. A local file is inspected to choose its format."
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Adapter method, see `lrft methods`.")] = "lora",
    full: Annotated[bool, typer.Option("--full", help="Every key with its default.")] = False,
) -> None:
    """Write a commented recipe to start from.

    Prompts for model and data if not given. A local data file is inspected, and the recipe sets the keys
    it needs.

    Example: lrft init --model HuggingFaceTB/SmolLM2-135M-Instruct --data train.jsonl
    """
    refuse(path, method)
    model, data = asked(model, data)
    from lrft.data.suggest import suggest
    from lrft.tracking.console import Reporter

    found = suggest(data)
    objective = None if found is None else found.objective
    write(path, model=model, data=data_section(data, found), method=method, objective=objective, full=full)
    with Reporter(None) as reporter:
        reporter.table([("wrote", str(path)), *notes(data, found)])
        reporter.table([("next", [command("lrft", name, path) for name in ("check", "preview", "train")])])


def refuse(path: Path, method: str) -> None:
    """Raises UsageError when there is a file at `path`, or no such folder, or no such method."""
    from lrft import registry

    if path.exists():
        raise UsageError(f"{path} already exists", "Choose another file name: lrft init other.yaml")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder")
    known = [*registry.methods(), *registry.PRESETS]
    if method not in known:
        close = nearest(method, known)
        raise UsageError(f"unknown method {method}", f"Did you mean {close[0]}?" if close else "See lrft methods.")


def asked(model: str | None, data: str | None) -> tuple[str, str]:
    """Both, asked for on a terminal where they are not given. Raises UsageError elsewhere."""
    missing = [f"--{name}" for name, given in (("model", model), ("data", data)) if not given]
    if missing and not sys.stdin.isatty():
        raise UsageError(
            f"lrft init needs {' and '.join(missing)}", "Example: lrft init --model OWNER/NAME --data train.jsonl"
        )
    return (
        model or typer.prompt("Base model (a folder, a hub id or a .gguf file)"),
        data or typer.prompt("Training data (a file, a folder or hub:OWNER/NAME)"),
    )


def data_section(path: str, found: Suggestion | None) -> str:
    """The section `data` of the recipe: the path alone, unless its rows need more."""
    from lrft.recipe.dump import inline

    if found is None or not any((found.format, found.columns, found.too_long)):
        return f"data: {inline(path)}"
    entry = [f"    - path: {inline(path)}"]
    if found.format:
        entry.append(f"      format: {found.format}  # the columns fit more than one format")
    if found.columns:
        entry.append(
            f"      columns: {inline(found.columns)}  # column in the file: column of lrft; a guess, check "
            f"with lrft preview"
        )
    section = ["data:", "  train:", *entry]
    if found.too_long:
        section.append(f"  too_long: {found.too_long}  # a document longer than max_length becomes several rows")
    return "\n".join(section)


def notes(data: str, found: Suggestion | None) -> list[Row]:
    """What `lrft check` will find wrong, as far as it is known by now."""
    if found is not None and found.problem:
        return [("data", list(found.problem))]
    if found is None and not data.startswith("hub:"):
        return [("data", f"{data} does not exist yet")]
    return []


def rate(method: str) -> str:
    """The method's default learning rate, with its origin."""
    from lrft import registry

    found = registry.default_rate([method])
    return f"{found.value:g}  # the default of {found.owner}, from {found.source}"


def write(path: Path, *, model: str, data: str, method: str, objective: str | None = None, full: bool) -> None:
    """Write the recipe to `path`, or with `full` one that has every key. data: the section, as YAML. objective: None
    for the default."""
    from lrft import recipe as recipes
    from lrft.recipe.dump import inline
    from lrft.utils import files

    check = command("lrft", "check", path)
    line = "" if objective is None else f"  objective: {inline(objective)}  # what the columns of the rows are for\n"
    given = {"check": check, "model": inline(model), "data": data, "method": inline(method), "rate": rate(method)}
    files.write_text(path, SHORT.format(objective=line, **given))
    if full:
        text = recipes.resolved(recipes.load(path), {}).split("\n", 1)[1]
        # As a default it gives way to a model with fewer positions; as a key it would be refused.
        text = text.replace("\n  max_length:", "\n  # max_length:", 1)
        files.write_text(path, f"# Every key of a recipe with its default. Check it: {check}\n{text}")

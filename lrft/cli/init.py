"""`lrft init`: a commented recipe to start from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lrft.cli.answer import answering
from lrft.cli.arguments import AsJson
from lrft.errors import UsageError, nearest
from lrft.utils.text import Row, command

if TYPE_CHECKING:
    from lrft.data.suggest import Suggestion

SCHEMA = "lrft.schema.json"
"""the file beside a recipe by which an editor completes and checks it"""
HEAD = """\
# yaml-language-server: $schema={schema}
# {check} finds what is wrong with this recipe.
# Every key with its default: lrft init --full. One key explained: lrft schema adapter.rank
"""
SHORT = """\

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
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Translate this configuration of another tool into a recipe."),
    ] = None,
    tool: Annotated[
        str | None, typer.Option(help="The tool of --from, if its keys do not tell: axolotl, trl, peft, ...")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented recipe to start from.

    Prompts for model and data if not given. A local data file is inspected, and the recipe sets the keys
    it needs. Beside the recipe lies its schema, by which an editor completes and checks keys.

    --from takes a configuration of Axolotl, LLaMA-Factory, ms-swift, torchtune, TRL, LitGPT, mlx-lm or Unsloth, or an
    adapter_config.json of PEFT. What has no counterpart is listed with the reason.

    Example: lrft init --model HuggingFaceTB/SmolLM2-135M-Instruct --data train.jsonl
    """
    refuse(path, method)
    if source is not None:
        translate(path, source, tool, model=model, data=data, as_json=as_json)
        return
    if tool is not None:
        raise UsageError("--tool says of which tool --from is: give both", "Example: lrft init --from config.yml")
    model, data = asked(model, data)
    from lrft.data.suggest import suggest

    found = suggest(data)
    objective = None if found is None else found.objective
    write(path, model=model, data=data_section(data, found), method=method, objective=objective, full=full)
    with answering(as_json) as reporter:
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
    given = {"model": inline(model), "data": data, "method": inline(method), "rate": rate(method)}
    write_schema(path.parent)
    files.write_text(path, head(path) + SHORT.format(objective=line, **given))
    if full:
        text = recipes.resolved(recipes.load(path), {}).split("\n", 1)[1]
        # As a default it gives way to a model with fewer positions; as a key it would be refused.
        text = text.replace("\n  max_length:", "\n  # max_length:", 1)
        first = head(path).splitlines()[0]
        files.write_text(path, f"{first}\n# Every key of a recipe with its default. Check it: {check}\n{text}")


def head(path: Path) -> str:
    """The comments at the start of a recipe: for editors, and for people."""
    return HEAD.format(schema=SCHEMA, check=command("lrft", "check", path))


def write_schema(folder: Path) -> None:
    """The JSON Schema of recipes in `folder`: one of another version is replaced, another file left alone."""
    from lrft.recipe.json_schema import SCHEMA_ID, schema_text
    from lrft.utils import files

    if not (folder / SCHEMA).exists() or SCHEMA_ID in (folder / SCHEMA).read_text(encoding="utf-8", errors="replace"):
        files.write_text(folder / SCHEMA, schema_text())


def translate(
    path: Path, source: Path, tool: str | None, *, model: str | None, data: str | None, as_json: bool
) -> None:
    """Write the configuration `source` of another tool as a recipe to `path`, and say what became of its keys."""
    from lrft.moving.convert import move
    from lrft.utils import files

    moved = move(source, tool, head=head(path), model=model, data=data)
    write_schema(path.parent)
    files.write_text(path, moved.text)
    count = len(moved.carried) + len(moved.needless) + len(moved.missing)
    rows: list[Row] = [
        ("wrote", str(path)),
        ("from", f"{source} of {moved.tool.TITLE}: {len(moved.carried)} of {count} keys have a place in the recipe"),
    ]
    if moved.needless:
        rows.append(("needless", f"{', '.join(line.key for line in moved.needless)}; the recipe says why"))
    if moved.missing:
        rows.append(("left out", [f"{line.key}: {line.text}" for line in moved.missing]))
    if moved.open:
        rows.append(("replace", f"{', '.join(moved.open)}: the configuration does not say it"))
    with answering(as_json) as reporter:
        reporter.table(rows)
        reporter.table([("next", [command("lrft", name, path) for name in ("check", "preview", "train")])])

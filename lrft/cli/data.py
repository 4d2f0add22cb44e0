"""`lrft data`: what there is in a data set, before anything is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.arguments import AsJson, Overrides, as_written, loading, read_recipe
from lrft.errors import UsageError

if TYPE_CHECKING:
    from lrft.data.report import SourceReport
    from lrft.data.survey import Part

RECIPES = (".yaml", ".yml")


def data(
    target: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe, a run folder, or a data file.")],
    overrides: Overrides = None,
    test: Annotated[str | None, typer.Option(help="A test file: its rows are looked for in the others.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write a page with pictures to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Count rows by source and reason; find duplicates, overlaps of train, validation and test, and extreme lengths.

    Of a recipe rows are measured in tokens, as they are trained; of a file in words. No weights are loaded.

    Example: lrft data recipe.yaml --test test.jsonl -o data.html
    """
    path = Path(target)
    is_recipe = path.suffix.lower() in RECIPES or (path / "resolved.yaml").is_file()
    if overrides and not is_recipe:
        raise UsageError(f"{target} is a data file: it has no keys to override", "Leave out what stands behind it.")
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"--out: there is no folder {out.parent}")
    parts, sources = _of_recipe(path, overrides, test) if is_recipe else _of_files(target, test)
    with loading():
        from rich.console import Console

        from lrft.data.survey import survey
        from lrft.report.data_page import data_page, lines
        from lrft.utils.files import write_text
        from lrft.utils.text import layout, visible
    facts = survey(parts, sources, "tokens" if is_recipe else "words")
    if out is not None:
        write_text(out, data_page(target, facts))
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    for label, text in layout([(label, [visible(t) for t in texts]) for label, texts in lines(facts)], Console().width):
        typer.echo(label + text)
    if out is not None:
        typer.echo(f"wrote {out}")


def _of_files(path: str, test: str | None) -> tuple[list[Part], list[SourceReport]]:
    with loading():
        from lrft.data.survey import parts_of_files
    return parts_of_files({"train": path, **({"test": test} if test is not None else {})})


def _of_recipe(path: Path, overrides: list[str] | None, test: str | None) -> tuple[list[Part], list[SourceReport]]:
    loaded = read_recipe(path, overrides)
    with loading():
        from lrft import data as rooms
        from lrft import registry
        from lrft.data.survey import part_of_rows
        from lrft.loading.from_recipe import find_base, load_data
        from lrft.model.load import load_config, position_limit
        from lrft.model.weights import cache_dir
    with as_written(loaded):
        source = find_base(loaded)
        tokenizer, prepared = load_data(loaded, source)
        sources = list(prepared.report.sources)
        held: dict[str, Any] = {"train": prepared.train, "validation": prepared.validation}
        if test is not None:
            config = load_config(source, trust_remote_code=loaded.model.trust_remote_code)
            held["test"], report = rooms.prepare_file(
                test,
                loaded.data,
                tokenizer,
                seed=loaded.training.seed,
                limit=position_limit(config),
                where=loaded.where,
                kind=registry.rows_of(*loaded.training.objective),
                cache=cache_dir(),
            )
            for found in report.sources:
                found.role = "test"
            sources += report.sources
    return [part_of_rows(role, rows, tokenizer) for role, rows in held.items() if rows is not None], sources

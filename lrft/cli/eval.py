"""`lrft eval`: evaluate a run, adapter or model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.arguments import AsJson, Base, adapter_in, loading, tell_choice, typed
from lrft.errors import UsageError
from lrft.utils.text import Row, count, decimals

if TYPE_CHECKING:
    from lrft import data
    from lrft.loading.saved import Target
    from lrft.model.head import Head
    from lrft.recipe import DataSection
    from lrft.tracking.console import Reporter


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER|MODEL", help="Run, adapter or model to evaluate.")],
    rows_path: Annotated[
        str | None, typer.Option("--data", help="Evaluation data. Default: the run's validation rows.")
    ] = None,
    data_format: Annotated[
        str | None, typer.Option("--format", help="Format of these rows, as data.train[].format. Default: the run's.")
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(metavar="{THEIRS: OURS}", help="Column mapping, as data.train[].columns. Default: the run's."),
    ] = None,
    special_tokens: Annotated[
        str | None, typer.Option(metavar="text|tokens", help="As data.train[].special_tokens. Default: the run's.")
    ] = None,
    base: Base = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    no_generate: Annotated[bool, typer.Option("--no-generate", help="Loss only, no answers.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 128,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass; results do not depend on it.")] = 8,
    samples: Annotated[int, typer.Option(min=0, help="Number of generated answers to print.")] = 3,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Allow the model's own Python code to run.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the loss and the figures of the run's objective, perplexity, and exact match of greedy answers.

    Example: lrft eval runs/first --data test.jsonl
    """
    with loading():
        from lrft import registry
        from lrft.evaluation.loss import counted_as
        from lrft.loading.saved import load_target, objective_on
        from lrft.model.end_tokens import add_stops
        from lrft.runs.after import noted
        from lrft.runs.locate import run_of
        from lrft.tracking.console import Reporter

    with Reporter(None, quiet=as_json, stream=sys.stderr if as_json else None) as reporter:
        adapter = adapter_in(target)
        run = None if adapter is None else run_of(adapter)
        if adapter is not None:
            tell_choice(Path(target), adapter)
        with noted(run, "eval", typed()) as kept:
            found = load_target(target, base, trust_remote_code)
            options = {"format": data_format, "columns": columns, "special_tokens": special_tokens}
            reading = {key: text for key, text in options.items() if text is not None}
            if reading and rows_path is None:
                raise UsageError(
                    f"--{next(iter(reading))} requires --data: without it the run's own rows are read as in its recipe"
                )
            if found.recipe is None and found.head is not None and rows_path is not None:
                found = replace(found, objective=objective_on(found.head, rows_path, reading))
            config = found.model.config
            kind = registry.rows_of(found.objective.name, vars(found.objective))
            rows, report = rows_for(
                target, rows_path, reading, found.section, found.tokenizer, found.folder, config, kind, found.head
            )
            # Rows of a chat template show where an answer ends, whatever the model's own configuration says.
            add_stops(found.model, found.tokenizer.convert_tokens_to_ids(report.end_tokens))
            if limit is not None:
                rows = rows.slice(range(min(limit, len(rows))))
            longest = 0 if no_generate or found.head else max_new_tokens
            result = {"target": target, **figures_on(found, rows, reporter, longest, batch_size, samples)}
            counted = count(result[counted_as(found.objective)], found.objective.unit)
            kept |= figures(result, counted, rows_path)
        if as_json:
            print(json.dumps(result, indent=1))  # ASCII: answers may hold control characters
        else:
            reporter.table(evaluation_rows(result, counted, report))


def figures_on(
    found: Target, rows: data.Rows, reporter: Reporter, longest: int, batch_size: int, samples: int
) -> dict[str, Any]:
    """Loss of `rows`, and exact match of the answers to those with a prompt; longest: of an answer, 0 for none."""
    from lrft.evaluation.generate import answer_rows, pad_token, with_prompts
    from lrft.evaluation.loss import loss_of
    from lrft.loading.others import others_of
    from lrft.loading.saved import answering

    result: dict[str, Any] = {"rows": len(rows), "samples": []}
    others = others_of(found, rows)
    losses, layout = answering(found.model, rows, found.objective, found.attached, others, found.head)
    own = None if found.head is None else found.head.pad_id
    result |= loss_of(
        losses,
        rows,
        micro=batch_size,
        pad_id=pad_token(found.tokenizer) if own is None else own,
        objective=found.objective,
        form=layout.form,
    )
    asked = with_prompts(rows) if longest else rows.slice([])
    if len(asked):
        answers = answer_rows(
            found.model,
            found.tokenizer,
            asked,
            max_new_tokens=longest,
            batch_size=batch_size,
            copies=losses.copies,
            progress=telling(reporter, len(asked)),
        )
        exact = sum(answer["match"] for answer in answers) / len(answers)
        result |= {"exact_match": exact, "answered": len(answers), "samples": answers[:samples]}
    return result


def figures(result: dict[str, Any], counted: str, rows_path: str | None) -> dict[str, str]:
    """What is kept of a measurement beside the run."""
    source = rows_path or "the run's validation rows"
    kept = {
        "rows": f"{count(result['rows'], 'row')}, {counted}: {source}",
        "loss": f"{result['loss']:.4f}"
        + (f" (perplexity {result['perplexity']:.3f})" if "perplexity" in result else ""),
    }
    if "figures" in result:
        kept["figures"] = ", ".join(figures_in_words(result["figures"]))
    if "exact_match" in result:
        kept["answers"] = f"exact match {result['exact_match']:.2%} of {count(result['answered'], 'row')}"
    return kept


def figures_in_words(found: Mapping[str, float]) -> list[str]:
    """The objective's figures, each with its name."""
    return [f"{name} {decimals(value, 4)}" for name, value in found.items()]


def telling(reporter: Reporter, total: int) -> Callable[[int], None]:
    """Says how many answers are there, every few seconds."""
    from lrft.tracking.console import PROGRESS_SECONDS

    told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            reporter.line(f"answered {done:,} of {total:,}")

    return progress


def evaluation_rows(result: dict[str, Any], counted: str, report: data.DataReport) -> list[Row]:
    """The table that is printed."""
    rows: list[Row] = [
        ("measured", [str(result["target"]), count(result["rows"], "row")]),
        ("data", measured_sources(report)),
        (
            "loss",
            [
                f"{result['loss']:.4f}",
                *([f"perplexity {result['perplexity']:.3f}"] if "perplexity" in result else []),
                counted,
            ],
        ),
        *([("figures", figures_in_words(result["figures"]))] if "figures" in result else []),
    ]
    if "exact_match" in result:
        rows.append(
            (
                "answers",
                [
                    f"exact match {result['exact_match']:.2%}",
                    count(result["answered"], "row with a prompt", "rows with a prompt"),
                ],
            )
        )
    for sample in result["samples"]:
        rows.append(("sample", [f"wanted {sample['expected']!r}", f"got {sample['answer']!r}"]))
    return rows


def as_served(head: Head | None) -> dict[str, Any]:
    """Keys of the data section by which a model that predicts no tokens reads texts, as it will be asked."""
    embedder = None if head is None else head.embedder
    if head is None:
        return {}
    if embedder is None:
        return {"too_long": "truncate"}
    prompts = {f"{side}_prompt": embedder.prompts.get(side, "") for side in ("query", "document")}
    length = {} if embedder.max_length is None else {"max_length": embedder.max_length}
    return {"too_long": "truncate", **length, **prompts}


def measured_sources(report: data.DataReport) -> list[str]:
    """The lines of the sources of the measured rows: those of validation, or those that a share was set apart from."""
    lines = list(zip(report.sources, report.lines(), strict=False))  # a line for each source stands first
    return [line for source, line in lines if source.role == "validation"] or [line for _, line in lines]


def rows_for(
    target: str,
    path: str | None,
    reading: Mapping[str, str],
    section: DataSection | None,
    tokenizer: Any,
    folder: Path,
    config: Any,
    kind: str,
    head: Head | None,
) -> tuple[data.Rows, data.DataReport]:
    """The rows to measure on: the file given, else the run's own validation rows. Raises UsageError.

    reading: keys of an entry of data.train for that file. config, head: the model's. kind: of rows, for the objective.
    """
    from lrft import data
    from lrft import recipe as recipes
    from lrft.loading.from_recipe import prepare_data
    from lrft.model.load import embedding_rows, position_limit
    from lrft.model.weights import cache_dir
    from lrft.recipe import DataEntry, DataSection
    from lrft.runs.locate import adapter_of, run_of

    cache = cache_dir()
    if path is not None:
        # The template that trained is the tokenizer's own by now, wherever the run's recipe had it from.
        read_as = data.reading(section) if section else {}
        if "format" in reading:  # the run's prompts are of another
            read_as = {key: value for key, value in read_as.items() if key not in ("prompt", "completion", "tools")}
        plain = DataSection(train=(DataEntry(path=path),))
        settings = (section or plain.model_copy(update=as_served(head))).model_copy(
            update={"chat_template": "tokenizer"}
        )
        rows, report = data.prepare_file(
            recipes.parse_entry(path, read_as, reading) if reading else path,
            settings,
            tokenizer,
            seed=0,
            limit=position_limit(config),
            where=lambda key: "default",
            cache=cache,
            kind=kind,
            labels=None if head is None else head.labels,
        )
        data.refuse_missing_rows([rows], embedding_rows(config), tokenizer)
        return rows, report
    if section is None:
        raise UsageError("no evaluation data given: pass --data FILE")
    recipe = recipes.load(Path(run_of(adapter_of(Path(target))) or target) / "resolved.yaml")
    prepared = prepare_data(recipe, folder, tokenizer)
    if prepared.validation is None:
        raise UsageError(f"{target} was trained without validation rows: pass evaluation data with --data FILE")
    return prepared.validation, prepared.report

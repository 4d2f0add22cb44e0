"""`lrft eval`: evaluate a run, adapter or model."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lrft.cli.arguments import AsJson, Base, TrustRemoteCode, adapter_in, loading, tell_choice, typed
from lrft.cli.eval_judge import Judge
from lrft.errors import UsageError
from lrft.utils.text import Row, count, decimals

if TYPE_CHECKING:
    from lrft import data
    from lrft.judging.data_files import DataFile
    from lrft.judging.side_by_side import Settings
    from lrft.loading.metrics import Metrics
    from lrft.loading.saved import Target
    from lrft.tracking.console import Reporter

LONGEST = 128  # tokens of an answer, where neither the command nor the run says it


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RUN|ADAPTER|MODEL", help="Run, adapter or model to evaluate.")],
    rows_path: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="FILE|NAME=FILE", help="Evaluation data; may be repeated. Default: the run's own."
        ),
    ] = None,
    data_format: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="[NAME=]FORMAT",
            help="Format of all files, or of one, as data.train[].format. Default: the run's.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]{THEIRS: OURS}", help="Column mapping, as data.train[].columns."),
    ] = None,
    special_tokens: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]text|tokens", help="As data.train[].special_tokens.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            metavar="base|RUN|ADAPTER|MODEL", help="Compare with the run's untouched base, or another, row by row."
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE,...", help="Tasks of lm-evaluation-harness; task files need no network."),
    ] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Examples before each question of a task.")] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Put the questions of tasks with the trained chat template.")
    ] = False,
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code", help="Let task files of --tasks, or files that evaluation.metrics names, run Python code."
        ),
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint whose model chooses between the two answers."),
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="Model that judges, at --judge.")] = None,
    judge_key: Annotated[
        str, typer.Option(metavar="VARIABLE", help="Environment variable with the key of --judge; it is never written.")
    ] = "OPENAI_API_KEY",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Page of --compare, --tasks and --judge. Default: eval/ in the run."),
    ] = None,
    base: Base = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N rows.")] = None,
    no_generate: Annotated[bool, typer.Option("--no-generate", help="Loss only, no answers.")] = False,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. Default: the run's evaluation.max_new_tokens, else 128.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows per forward pass; results do not depend on it.")] = 8,
    samples: Annotated[int, typer.Option(min=0, help="Number of generated answers to print.")] = 3,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Measure the loss and the figures of the run's objective, perplexity, and exact match of greedy answers; of a run
    also its evaluation.metrics, and the loss of its evaluation.sets where no data are given.

    \b
    --compare   two models, row by row, with intervals
    --tasks     of lm-evaluation-harness (lrft[harness])
    --judge     another model chooses between answers

    Example: lrft eval runs/first --data test.jsonl --compare base
    """
    judging = None if judge is None or judge_model is None else Judge(judge, judge_model, judge_key)
    refuse_unclear(
        compare, tasks, num_fewshot, chat_template, allow_code, judge, judge_model, rows_path, out, no_generate
    )
    if judging is not None:
        judging.refuse_unusable()
    with loading():
        from lrft.judging.data_files import data_files
        from lrft.judging.side_by_side import Settings
        from lrft.tracking.console import Reporter

    if tasks is not None:
        from lrft.cli.eval_tasks import run_tasks

        run_tasks(
            target,
            tasks,
            base,
            num_fewshot,
            chat_template,
            limit,
            batch_size,
            trust_remote_code,
            allow_code,
            out,
            as_json,
        )
        return
    reading = {"format": data_format, "columns": columns, "special_tokens": special_tokens}
    files = data_files(rows_path or [], {key: values or [] for key, values in reading.items()})
    settings = Settings(0 if no_generate else max_new_tokens or LONGEST, batch_size, limit, base, trust_remote_code)
    with Reporter(None, quiet=as_json, stream=sys.stderr if as_json else None) as reporter:
        if compare is None and judge is None:
            evaluate_alone(target, files, settings, max_new_tokens, samples, reporter, allow_code, as_json)
            return
        from lrft.cli.eval_compare import compare_two

        compare_two(target, compare or "base", files, settings, judging, reporter, out, as_json)


def refuse_unclear(
    compare: str | None,
    tasks: str | None,
    num_fewshot: int | None,
    chat_template: bool,
    allow_code: bool,
    judge: str | None,
    judge_model: str | None,
    rows_path: list[str] | None,
    out: Path | None,
    no_generate: bool,
) -> None:
    """Raises UsageError for options that mean nothing beside the others."""
    others = {"compare": compare, "judge": judge, "data": rows_path}
    if tasks is not None and (given := [name for name, value in others.items() if value]):
        raise UsageError(f"--tasks brings rows of its own: it cannot be given with --{given[0]}")
    of_tasks = {"num-fewshot": num_fewshot is not None, "chat-template": chat_template}
    if tasks is None and (said := [name for name, is_given in of_tasks.items() if is_given]):
        raise UsageError(f"--{said[0]} is only for --tasks")
    if allow_code and (compare is not None or judge is not None):
        raise UsageError("--allow-code is for --tasks and for the metrics of a run evaluated alone")
    if (judge is None) != (judge_model is None):
        raise UsageError("--judge URL and --judge-model NAME require each other")
    if judge is not None and no_generate:
        raise UsageError("--judge compares answers: it cannot be given with --no-generate")
    if out is not None and tasks is None and compare is None and judge is None:
        raise UsageError(
            "-o is the page of --compare, --tasks or --judge; figures alone are printed, with --json as JSON"
        )


def evaluate_alone(
    target: str,
    files: Sequence[DataFile],
    settings: Settings,
    max_new_tokens: int | None,
    samples: int,
    reporter: Reporter,
    allow_code: bool,
    as_json: bool,
) -> None:
    """One target on each file. max_new_tokens: None for what its run says."""
    from lrft import registry
    from lrft.evaluation.loss import counted_as
    from lrft.loading.evaluation_rows import rows_for
    from lrft.loading.metrics import Metrics, metrics_of
    from lrft.loading.saved import load_target, objective_on
    from lrft.model.end_tokens import add_stops
    from lrft.runs.after import noted
    from lrft.runs.locate import run_of

    adapter = adapter_in(target)
    run = None if adapter is None else run_of(adapter)
    if adapter is not None:
        tell_choice(Path(target), adapter)
    results: dict[str, dict[str, Any]] = {}
    tables: list[Row] = []
    with noted(run, "eval", typed()) as kept:
        found = load_target(target, settings.base, settings.trusted)
        for file in files:
            if found.recipe is None and found.head is not None and file.path is not None:
                found = replace(found, objective=objective_on(found.head, file.path, file.reading))
            kind = registry.rows_of(found.objective.name, vars(found.objective))
            rows, report = rows_for(
                target,
                file.path,
                file.reading,
                found.section,
                found.tokenizer,
                found.folder,
                found.model.config,
                kind,
                found.head,
            )
            # Rows of a chat template show where an answer ends, whatever the model's own configuration says.
            add_stops(found.model, found.tokenizer.convert_tokens_to_ids(report.end_tokens))
            if settings.limit is not None:
                rows = rows.slice(range(min(settings.limit, len(rows))))
            recipe = found.recipe
            most = max_new_tokens or (recipe.evaluation.max_new_tokens if recipe else settings.longest)
            longest = most if settings.longest and found.head is None else 0
            metrics = Metrics((), ())
            if recipe is not None:
                metrics = metrics_of(recipe, allow_code=allow_code, of_answers=longest > 0)
            sets = sets_for(found) if file.path is None else {}
            figured = figures_on(found, rows, reporter, longest, settings.batch_size, samples, metrics, sets)
            result = {"target": target, **figured}
            counted = count(result[counted_as(found.objective)], found.objective.unit)
            name = f"{file.name}: " if len(files) > 1 else ""
            kept |= {f"{name}{key}": words for key, words in figures(result, counted, file.path).items()}
            results[file.name] = result
            tables += evaluation_rows(result, counted, report)
    if as_json:
        made = results[files[0].name] if len(files) == 1 else {"target": target, "data": results}
        print(json.dumps(made, indent=1))  # ASCII: answers may hold control characters
    else:
        reporter.table(tables)


def sets_for(found: Target) -> dict[str, data.Rows]:
    """The rows of the run's evaluation.sets, by name."""
    from lrft.loading.from_recipe import load_sets

    if found.recipe is None:
        return {}
    return load_sets(found.recipe, found.folder, found.tokenizer, found.head.labels if found.head else None)


def figures_on(
    found: Target,
    rows: data.Rows,
    reporter: Reporter,
    longest: int,
    batch_size: int,
    samples: int,
    metrics: Metrics,
    sets: Mapping[str, data.Rows],
) -> dict[str, Any]:
    """Loss of `rows` and of the `sets`, and exact match and `metrics` of the answers to rows with a prompt; longest:
    of an answer, 0 for none."""
    from lrft.evaluation.generate import answer_rows, pad_token, room_note, with_prompts
    from lrft.evaluation.loss import loss_of
    from lrft.loading.metrics import figures_of
    from lrft.loading.others import others_of
    from lrft.loading.saved import answering
    from lrft.model.load import position_limit

    result: dict[str, Any] = {"rows": len(rows), "samples": []}
    others = others_of(found, rows)
    losses, layout = answering(found.model, rows, found.objective, found.attached, others, found.head)
    if found.recipe is not None:
        losses.wanted = figures_of(found.recipe, found.objective, losses, metrics.of_rows)
    own = None if found.head is None else found.head.pad_id
    how: dict[str, Any] = {
        "micro": batch_size,
        "pad_id": pad_token(found.tokenizer) if own is None else own,
        "objective": found.objective,
        "form": layout.form,
    }
    result |= loss_of(losses, rows, **how)
    figures = result.get("figures", {}) | {
        f"{name}/loss": loss_of(losses, s, **how)["loss"] for name, s in sets.items()
    }
    asked = with_prompts(rows) if longest else rows.slice([])
    if len(asked):
        lengths = [len(asked.prompt(i)) for i in range(len(asked))]
        if note := room_note(lengths, longest, position_limit(found.model.config)):
            reporter.warn(note)
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
        figures |= metrics.scores(answers)
    return result | ({"figures": figures} if figures else {})


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


def measured_sources(report: data.DataReport) -> list[str]:
    """The lines of the sources of the measured rows: those of validation, or those that a share was set apart from."""
    lines = list(zip(report.sources, report.lines(), strict=False))  # a line for each source stands first
    return [line for source, line in lines if source.role == "validation"] or [line for _, line in lines]

"""`lrft eval`: what is measured, on which rows, and how it is told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lrft import data
from lrft import recipe as recipes
from lrft.errors import UsageError
from lrft.evaluation.generate import answer_rows, pad_token, with_prompts
from lrft.evaluation.loss import loss_of
from lrft.loading.from_recipe import prepare_data
from lrft.loading.saved import answering, load_target
from lrft.model.end_tokens import add_stops
from lrft.model.load import embedding_rows, position_limit
from lrft.model.weights import cache_dir
from lrft.recipe import DataEntry, DataSection
from lrft.runs.locate import adapter_of, run_of
from lrft.tracking.console import PROGRESS_SECONDS, Reporter
from lrft.utils.text import Row


def evaluate_target(
    target: str,
    rows_path: str | None,
    *,
    reading: Mapping[str, str | None] | None = None,
    base_model: str | None,
    limit: int | None,
    generate: bool,
    max_new_tokens: int,
    batch_size: int,
    samples: int,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """`lrft eval`. reading: keys of an entry of data.train for these rows, as they were written; None: the run's."""
    with Reporter(None, quiet=as_json, stream=sys.stderr if as_json else None) as reporter:
        found = load_target(target, base_model, trust_remote_code)
        model, tokenizer = found.model, found.tokenizer
        given = {key: text for key, text in (reading or {}).items() if text is not None}
        if given and rows_path is None:
            raise UsageError(f"--{next(iter(given))} goes with --data: the run's own rows are read as its recipe says")
        rows, report = rows_for(target, rows_path, given, found.section, tokenizer, found.folder, model.config)
        # Rows of a chat template show where an answer ends, whatever the model's own configuration says.
        add_stops(model, tokenizer.convert_tokens_to_ids(report.end_tokens))
        if limit is not None:
            rows = rows.slice(range(min(limit, len(rows))))
        result: dict[str, Any] = {"target": target, "rows": len(rows)}
        losses, layout = answering(model, rows)
        result |= loss_of(losses, rows, micro=batch_size, pad_id=pad_token(tokenizer), form=layout.form)
        answers = []
        asked = with_prompts(rows) if generate else rows.slice([])
        if len(asked):
            answers = answer_rows(
                model,
                tokenizer,
                asked,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                copies=losses.copies,
                progress=telling(reporter, len(asked)),
            )
            result["exact_match"] = sum(answer["match"] for answer in answers) / len(answers)
            result["answered"] = len(answers)
        result["samples"] = answers[:samples]
        if as_json:
            print(json.dumps(result, indent=1))  # ASCII: answers may hold control characters
        else:
            reporter.table(evaluation_rows(result, report))


def telling(reporter: Reporter, total: int) -> Callable[[int], None]:
    """Says how many answers are there, every few seconds."""
    told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told >= PROGRESS_SECONDS:
            told = time.monotonic()
            reporter.line(f"answered {done:,} of {total:,}")

    return progress


def evaluation_rows(result: dict[str, Any], report: data.DataReport) -> list[Row]:
    rows: list[Row] = [
        ("measured", [str(result["target"]), f"{result['rows']:,} rows"]),
        ("data", report.lines()[:1]),
        (
            "loss",
            [
                f"{result['loss']:.4f}",
                f"perplexity {result['perplexity']:.3f}",
                f"{result['tokens']:,} trained tokens",
            ],
        ),
    ]
    if "exact_match" in result:
        rows.append(
            (
                "answers",
                [f"exact match {result['exact_match']:.2%}", f"{result['answered']:,} rows with a prompt"],
            )
        )
    for sample in result["samples"]:
        rows.append(("sample", [f"wanted {sample['expected']!r}", f"got {sample['answer']!r}"]))
    return rows


def rows_for(
    target: str,
    path: str | None,
    reading: Mapping[str, str],
    section: DataSection | None,
    tokenizer: Any,
    folder: Path,
    config: Any,
) -> tuple[data.Rows, data.DataReport]:
    """The rows to measure on: the file given, else the run's own validation rows. Raises UsageError.

    reading: keys of an entry of data.train for that file. config: the model's.
    """
    cache = cache_dir()
    if path is not None:
        # The template that trained is the tokenizer's own by now, wherever the run's recipe had it from.
        settings = (section or DataSection(train=(DataEntry(path=path),))).model_copy(
            update={"chat_template": "tokenizer"}
        )
        rows, report = data.prepare_file(
            recipes.parse_entry(path, data.reading(settings), reading) if reading else path,
            settings,
            tokenizer,
            seed=0,
            limit=position_limit(config),
            where=lambda key: "default",
            cache=cache,
        )
        data.refuse_missing_rows([rows], embedding_rows(config), tokenizer)
        return rows, report
    if section is None:
        raise UsageError("say which rows to measure on: --data FILE")
    recipe = recipes.load(Path(run_of(adapter_of(Path(target))) or target) / "resolved.yaml")
    prepared = prepare_data(recipe, folder, tokenizer)
    if prepared.validation is None:
        raise UsageError(f"{target} was trained without validation rows: say which rows to measure on, --data FILE")
    return prepared.validation, prepared.report

"""`lrft eval`: what is measured, on which rows, and how it is told."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrft import (
    base,
    checkpoint,
    data,
    evaluate,
    merging,
    setup,
)
from lrft import recipe as recipes
from lrft.checkpoint import adapter_of
from lrft.core.copies import copying
from lrft.errors import UsageError
from lrft.layout import find_layout
from lrft.machine import DTYPES
from lrft.recipe import DataEntry, DataSection
from lrft.report import PROGRESS_SECONDS, Reporter
from lrft.text import Row
from lrft.verify import run_of, trusts_remote_code


def evaluate_target(
    target: str,
    rows_path: Path | None,
    *,
    base_model: str | None,
    limit: int | None,
    generate: bool,
    max_new_tokens: int,
    batch_size: int,
    samples: int,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """`lrft eval`."""
    with Reporter(None, quiet=as_json, stream=sys.stderr if as_json else None) as reporter:
        model, tokenizer, section, folder = load_target(target, base_model, trust_remote_code)
        rows, report = rows_for(target, rows_path, section, tokenizer, folder, base.position_limit(model.config))
        if limit is not None:
            rows = rows.slice(range(min(limit, len(rows))))
        result: dict[str, Any] = {"target": target, "rows": len(rows)}
        found = find_layout(model, rows, packing="auto", compute="fp32" if model.dtype.itemsize > 2 else "bf16")
        losses = found.loss(model)
        losses.copies = copying(model)
        result |= evaluate.loss_of(
            losses, rows, micro=batch_size, pad_id=evaluate.pad_token(tokenizer), form=found.form
        )
        answers = []
        asked = evaluate.with_prompts(rows) if generate else rows.slice([])
        if len(asked):
            answers = evaluate.answer_rows(
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


def load_target(target: str, base_model: str | None, trusted: bool) -> tuple[Any, Any, DataSection | None, Path]:
    """(model, tokenizer, the run's data section or None, the base's folder) of a run, an adapter or a model.

    trusted: code that the model brings along may be executed. A run's own recipe can say so too.
    """
    path = Path(target)
    if (path / "run.json").is_file() or (path / "lrft.json").is_file():
        adapter = adapter_of(path)
        saved = checkpoint.read_adapter(adapter)
        folder = merging.base_of(saved, base_model)
        merging.refuse_other_base(saved, folder, accepted=False)
        trusted = trusted or trusts_remote_code(adapter)
        dtype = DTYPES[saved.info["base"].get("dtype", "float32")]
        model = base.load_model(folder, dtype=dtype, quantization=saved.quantization, trust_remote_code=trusted)
        checkpoint.load_adapter(model, adapter)
        run = run_of(adapter)
        section = recipes.load(run / "resolved.yaml").data if run else None
        return on_device(model), base.load_tokenizer(adapter, trusted), section, folder
    if base_model:
        raise UsageError(f"--base goes with a run or an adapter; {target} is a model by itself")
    folder = base.resolve(target, where="the model")
    dtype = DTYPES["float32"] if not gpu() else DTYPES["bfloat16"]
    model = base.load_model(folder, dtype=dtype, trust_remote_code=trusted)
    return on_device(model), base.load_tokenizer(folder, trusted), None, folder


def gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def on_device(model: Any) -> Any:
    return model.to("cuda") if gpu() else model


def rows_for(
    target: str,
    path: Path | None,
    section: DataSection | None,
    tokenizer: Any,
    folder: Path,
    positions: int | None,
) -> tuple[data.Rows, data.DataReport]:
    """The rows to measure on: the file given, else the run's own validation rows. Raises UsageError.

    positions: the longest sequence that the model takes.
    """
    cache = base.cache_dir()
    if path is not None:
        # The template that trained is the tokenizer's own by now, wherever the run's recipe had it from.
        settings = (section or DataSection(train=(DataEntry(path=str(path)),))).model_copy(
            update={"chat_template": "tokenizer"}
        )
        return data.prepare_file(
            path, settings, tokenizer, seed=0, limit=positions, where=lambda key: "default", cache=cache
        )
    if section is None:
        raise UsageError("say which rows to measure on: --data FILE")
    recipe = recipes.load(Path(run_of(adapter_of(Path(target))) or target) / "resolved.yaml")
    prepared = setup.prepare_data(recipe, folder, tokenizer)
    if prepared.validation is None:
        raise UsageError(f"{target} was trained without validation rows: say which rows to measure on, --data FILE")
    return prepared.validation, prepared.report

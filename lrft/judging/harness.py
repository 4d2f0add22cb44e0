"""Tasks of lm-evaluation-harness, asked of a loaded model.

The harness gets the model itself, adapters and all, through its own class for transformers: what no other tool can load
is measured like anything else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from lrft.adapters.ensemble import copying
from lrft.data.prompts import Asking
from lrft.errors import CheckFailed, DataError, MissingError, UsageError, nearest
from lrft.loading.saved import Target
from lrft.model.end_tokens import add_stops
from lrft.model.load import position_limit
from lrft.utils.slow import verbose

STDERR = "_stderr"
CODE = ("!function", "class:")
"""in a task file: Python of a file beside it"""
INCLUDE = re.compile(r"^include:\s*[\"']?([^\s\"']+)", re.MULTILINE)


def refuse_missing() -> None:
    """Raises MissingError where the harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MissingError("--tasks requires lm-evaluation-harness", "pip install 'lrft[harness]'") from None


def run_tasks(
    found: Target,
    tasks: Sequence[str],
    *,
    num_fewshot: int | None = None,
    chat_template: bool = False,
    limit: int | None = None,
    batch_size: int = 8,
    allow_code: bool = False,
) -> dict[str, Any]:
    """{"results": [{"task", "metric", "filter", "value", "stderr", "higher_is_better", "rows", "num_fewshot"}],
    "versions": by task and of the harness, "settings"}, as JSON values.

    tasks: names of the harness, task files (.yaml) and folders of them. allow_code: local task files may name Python
    functions. Raises UsageError for a task that there is not, or a model that the harness cannot ask, DataError for a
    task that cannot be read.
    """
    refuse_missing()
    refuse_unfit(found, chat_template)
    refuse_code(tasks, allow_code)
    from lm_eval import evaluator

    if not verbose():
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
    chosen = loaded_tasks(tasks)
    made = evaluator.simple_evaluate(
        model=asked(found, chat_template, batch_size),
        tasks=chosen,
        num_fewshot=num_fewshot,
        limit=limit,
        apply_chat_template=chat_template,
        log_samples=False,
    )
    settings = {"num_fewshot": num_fewshot, "chat_template": chat_template, "limit": limit}
    return {
        "results": rows_of(made),
        "versions": {"lm_eval": version("lm_eval"), **made.get("versions", {})},
        "settings": settings,
    }


def asked(found: Target, chat_template: bool, batch_size: int) -> Any:
    """The loaded model in the harness's own class. Raises CheckFailed when that class has changed what it computes."""
    from lm_eval.models.huggingface import HFLM

    model, options = found.model, {} if found.section is None else dict(found.section.template_options)
    if chat_template:
        ends = Asking(found.tokenizer, options=options).ends
        add_stops(model, found.tokenizer.convert_tokens_to_ids(list(ends)))
    before = probe(model)
    made = HFLM(
        pretrained=model,
        tokenizer=found.tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=position_limit(model.config),
        chat_template_args=options,
    )
    if not torch.equal(before, probe(model)):  # it ties the embeddings again
        raise CheckFailed("lm-evaluation-harness has changed the model's weights: its figures would be another model's")
    return made


def probe(model: Any) -> torch.Tensor:
    """Logits of a few tokens, in the mode of an evaluation."""
    ids = torch.arange(1, 9, device=model.device)[None]
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


def refuse_unfit(found: Target, chat_template: bool) -> None:
    """Raises UsageError."""
    if found.head is not None:
        raise UsageError("--tasks asks for the likelihood of tokens: a model with a classification head has none")
    if copying(found.model)() > 1:
        raise UsageError(
            "--tasks cannot ask an ensemble of adapters: it would answer as its first member alone",
            "Measure it on rows, with --data.",
        )
    if chat_template and not found.tokenizer.chat_template:
        raise UsageError("--chat-template: the model has no chat template")


def refuse_code(tasks: Sequence[str], allowed: bool) -> None:
    """Raises UsageError for a local task that runs Python code of a file beside it."""
    for task in () if allowed else tasks:
        path = Path(task)
        for file in sorted(path.rglob("*.yaml")) if path.is_dir() else with_included(path):
            if any(tag in file.read_text(encoding="utf-8", errors="replace") for tag in CODE):
                raise UsageError(
                    f"--tasks: {file} runs Python code of a file", "Read it, then give --allow-code to the command."
                )


def with_included(file: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """A task file and those that it includes; none where there is no such file."""
    if not file.is_file() or file in above:
        return []
    names = INCLUDE.findall(file.read_text(encoding="utf-8", errors="replace"))
    return [file, *(one for name in names for one in with_included(file.parent / name, (*above, file)))]


def loaded_tasks(tasks: Sequence[str]) -> list[Any]:
    """Tasks and groups, read. Raises UsageError for an unknown name, DataError for what cannot be read."""
    from lm_eval.tasks import TaskManager

    made: list[Any] = []
    known: Any = None
    for task in tasks:
        path = Path(task)
        if path.is_dir():
            manager = TaskManager(include_path=str(path), include_defaults=False)
            names = manager.all_subtasks
            if not names:
                raise DataError(f"--tasks: {task} holds no task file: expected YAML with `task:` and a name")
        elif path.is_file():
            manager, names = TaskManager(include_defaults=False), [str(path.resolve())]
        else:
            manager = known = known or TaskManager()
            names = known.match_tasks([task])
            if not names:
                close = nearest(task, known.all_tasks)
                hint = f"Did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists those that it has."
                raise UsageError(f"--tasks: there is no task, task file or folder {task}", hint)
        for name in names:
            made += loaded(manager, name)
    return made


def loaded(manager: Any, name: str) -> list[Any]:
    """A group as one, so that its mean is told too. Raises DataError: a task's data set is read here."""
    try:
        found = manager.load([name])
    except Exception as error:  # of any kind: tasks are read by many libraries
        raise DataError(f"--tasks: {name} cannot be read: {type(error).__name__}: {error}") from error
    return [found["groups"][name]] if name in found["groups"] else list(found["tasks"].values())


def rows_of(made: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure of each task."""
    found = []
    for task, figures in made["results"].items():
        sizes = made.get("n-samples", {}).get(task, {})
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith(STDERR) or not isinstance(value, int | float):
                continue
            error = figures.get(f"{metric}{STDERR},{filtered}")
            found.append(
                {
                    "task": task,
                    "metric": metric,
                    "filter": filtered,
                    "value": float(value),
                    "stderr": float(error) if isinstance(error, int | float) else None,
                    "higher_is_better": made.get("higher_is_better", {}).get(task, {}).get(metric),
                    "rows": sizes.get("effective"),
                    "num_fewshot": made.get("n-shot", {}).get(task),
                }
            )
    return found

"""Commands run on finished runs: metric, merge check, forgetting.

Answers are kept beside the run with the run's id, and asked for again when the folder holds another run.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from typing import Any

from lrft.compare.config import Comparison
from lrft.compare.jobs import NOT_FAILURES, Job, last_words
from lrft.compare.metric import COMMON, EXACT_MATCH, LOSS, PERPLEXITY
from lrft.compare.pool import Task
from lrft.errors import CheckFailed, UsageError
from lrft.runs.metrics import of_kind, read_metrics
from lrft.runs.verdict import BEST, LAST, worse_than_base

FINAL = (0, UsageError.exit_code, CheckFailed.exit_code)
"""exit codes of a command that would answer the same again"""


def answer(job: Job, name: str) -> dict[str, Any] | None:
    """What a command has said of the run that is in the folder now; None when it has not been asked."""
    kept = job.record.get(name)
    known = isinstance(kept, dict) and kept.get("run") == job.facts.get("id") and kept.get("exit") in FINAL
    return kept if known else None


def metric_of(job: Job, metric: str) -> float | None:
    """The metric of a finished run on its validation rows; None when it is not known.

    Of its best checkpoint; of its last one where none was better than the untouched base, whose own loss is no
    result of the run.
    """
    result = job.facts.get("result", {})
    best = result.get(LAST, result.get(BEST)) if worse_than_base(result) else result.get(BEST)
    if best is not None and metric in (LOSS, PERPLEXITY):
        return float(best) if metric == LOSS else math.exp(min(best, 700.0))
    known = figures_of(job) | (answer(job, "evaluation") or {})
    return None if known.get(metric) is None else float(known[metric])


def figures_of(job: Job) -> dict[str, Any]:
    """Those of the evaluation of the run's best state, or of its last one where none beats the base."""
    result = job.facts.get("result", {})
    step = None if worse_than_base(result) else result.get("best step")
    evals = of_kind(read_metrics(job.folder / "metrics.jsonl")[0], "eval")
    those = [record for record in evals if step is None or record["step"] == step]
    found: dict[str, Any] = those[-1].get("figures", {}) if those else {}
    return found


def evaluation(job: Job, metric: str) -> Task | None:
    """`lrft eval`, where the run's own record does not hold the metric."""
    if metric_of(job, metric) is not None:
        return None
    generate = (
        ["--max-new-tokens", str(job.recipe.evaluation.max_new_tokens)] if metric == EXACT_MATCH else ["--no-generate"]
    )
    return _task(job, "evaluation", ["eval", str(job.folder), "--json", "--samples", "0", *generate], _figures)


def forgetting(job: Job, text: str) -> Task | None:
    """The loss on general text before and after training."""
    known = answer(job, "forgetting")
    if known is not None and known.get("text") == text:
        return None

    def read(said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "text": text}

    return _task(job, "forgetting", [str(job.folder), text], read, module="lrft.compare.forgetting")


def merge(job: Job, comparison: Comparison) -> Task | None:
    """`lrft merge` with its check. The merged folder is removed again: it is as large as the model."""
    if answer(job, "merge") is not None:
        return None
    out = comparison.output / "merged" / job.variant.name
    shutil.rmtree(out, ignore_errors=True)

    def read(said: dict[str, Any]) -> dict[str, Any]:
        return {key: said["verified"][key] for key in ("relative", "tolerance", "same_first")}

    def remove() -> None:
        shutil.rmtree(out, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.parent.rmdir()  # the last one takes the folder along

    return _task(job, "merge", ["merge", str(job.folder), "-o", str(out), "--json"], read, after=remove)


def against(job: Job, other: Job) -> Task | None:
    """The losses of two runs on the same rows, with their paired interval."""
    name = f"against {other.folder}"
    known = answer(job, name)
    if known is not None and known.get("other") == other.facts.get("id"):
        return None

    def read(said: dict[str, Any]) -> dict[str, Any]:
        (found,) = said["data"].values()
        return {"other": other.facts.get("id"), "rows": found["rows"], "loss": found["figures"]["loss"]}

    arguments = ["eval", str(job.folder), "--compare", str(other.folder), "--no-generate", "--json"]
    return _task(job, name, arguments, read, file="against")


def _figures(said: dict[str, Any]) -> dict[str, Any]:
    return said.get("figures", {}) | {key: said[key] for key in COMMON if key in said}


def _task(
    job: Job,
    name: str,
    arguments: list[str],
    read: Callable[[dict[str, Any]], dict[str, Any]],
    *,
    after: Callable[[], None] = lambda: None,
    module: str = "lrft",
    file: str = "",
) -> Task:
    """A command whose JSON becomes an answer of the job: `read` picks what is kept of it. file: in the place of its
    name, for what it writes meanwhile."""
    out, log = job.beside(f".{file or name}.out"), job.beside(f".{file or name}.log")

    def ended(code: int, seconds: float) -> None:
        kept: dict[str, Any] = {"run": job.facts.get("id"), "exit": code}
        if code == 0:
            kept |= read(json.loads(out.read_text(encoding="utf-8")))
            log.unlink(missing_ok=True)
        else:
            kept["said"] = last_words(log)
        out.unlink(missing_ok=True)
        after()
        job.note(**{name: kept})

    return Task(f"{name} of {job.label}", arguments, log, ended, out, module)


def said_of(job: Job, name: str) -> str:
    """Why a command has no answer; "" when it has one or was not asked."""
    kept: Any = job.record.get(name)
    if not isinstance(kept, dict) or kept.get("exit") in NOT_FAILURES:
        return ""
    return f"exit code {kept['exit']}: {kept.get('said', '')}"

"""Running a stage: data, comparison, `lrft train` for each run, what is asked of finished ones, and what is kept."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from common import keeping
from common.small_model import write_rows

from lrft.compare import budget, config, result
from lrft.compare import run as comparing
from lrft.compare.fingerprints import Hashes, refuse_other_contents
from lrft.compare.jobs import Job, last_words, make_jobs, refuse_other_recipes
from lrft.compare.pool import Pool, Task, visible_gpus
from lrft.distributed import launch
from lrft.errors import LrftError, Stopped, exit_code
from lrft.quickstart.model import MODELS, fetch
from lrft.tracking.console import Reporter
from lrft.utils import files
from real_benchmark.design import KEPT, MODEL, RECIPE, WORK
from real_benchmark.rows import intents
from real_benchmark.rows.all import TASKS
from real_benchmark.stages import Part

NOISY, NOISE = "intents-noisy.jsonl", 0.3
"""the intents with a share of wrong labels, which a claim trains on"""
OF_METHOD = ("merge_check", "merge_difference", "exports_to", "tokens_per_second", "memory_gb", "seconds")
STOPPED = exit_code(Stopped("", signal.SIGTERM))


def write_data(folder: Path = WORK / "data") -> None:
    """The rows of all tasks, the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS.values():
        for name, rows in vars(task.sets()).items():
            write_rows(folder / f"{task.name}-{name.replace('_', '-')}.jsonl", rows)
    write_rows(folder / NOISY, intents.mislabelled(intents.sets().train, NOISE, seed=1))


def run(part: Part, until: float | None) -> bool:
    """A part in a process of its own, whose seconds are counted; what is finished of it already is not done again.

    until: on time.monotonic, when the run that is going on is to save a checkpoint and stop. Returns whether the stage
    is finished. Raises CalledProcessError when it failed.
    """
    with keeping.counted(part.folder / "cost.json"):
        command = [sys.executable, "-m", "real_benchmark", "stage", part.group, part.stage.name]
        # A terminal's Ctrl-C comes here, and from here to the part once: a second signal would cost it its checkpoint.
        process = subprocess.Popen(command, start_new_session=True)
        code = wait(process, until)
    if code in (STOPPED, -signal.SIGTERM):
        return False
    if code != 0:
        raise subprocess.CalledProcessError(code, command)
    keep(part)
    return True


def wait(process: subprocess.Popen[bytes], until: float | None) -> int:
    """The exit code. A process that is not done in time is asked to end, once, and waited for; so is one when this
    process is told to end."""

    def told(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, told)
    try:
        return process.wait(None if until is None else max(0.0, until - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.send_signal(signal.SIGTERM)
        process.wait()
        return STOPPED
    finally:
        signal.signal(signal.SIGTERM, before)


def train(part: Part) -> None:
    """What is left of a part, in this process: it writes compare.json and judged.json into the part's folder.

    Raises LrftError; runs that failed are told on the page and stop nothing.
    """
    if part.recipe == RECIPE:
        fetch(MODELS[MODEL])
    write_data()
    comparison = config.read(part.write())
    choices = budget.choose(comparison)
    jobs = make_jobs(comparison, [comparing.rank_of(comparison, choice) for choice in choices])
    refuse_other_recipes(jobs)
    refuse_other_contents(jobs, hashes := Hashes())
    gpus = visible_gpus(launch.gpus())
    with Reporter(None) as reporter, comparing.taken(comparison.output), Pool(1, gpus) as pool:
        comparing.train(jobs, hashes, pool, reporter)
        if part.stage.kind == "final":
            comparing.ask(comparison, jobs, pool, reporter)
            finished = [job for job in jobs if job.state == "finished"]
            reporter.line("asking the test rows, which nothing has looked at so far")
            pool.run([task for job in finished if (task := asking(job, part.stage.task)) is not None])
            pool.run(asking_base(part, comparison.first_recipe().model.name))
            files.write_json(comparison.output / "judged.json", judged(finished))
    found = result.gather(comparison, jobs, choices)
    if found["methods"][0]["best"] is None:
        said = found["failed"][0]["said"] if found["failed"] else ""
        raise LrftError(f"no run of {comparison.baseline}, the baseline, has ended well: {said}")
    files.write_json(comparison.output / "compare.json", found)


def asking(job: Job, task: str) -> Task | None:
    """The judge of a finished run, unless it has answered."""
    if job.record.get("judge", {}).get("run") == job.facts["id"]:
        return None
    out, log = job.beside(".judge.out"), job.beside(".judge.log")

    def ended(code: int, seconds: float) -> None:
        if code:
            job.note(judge={"said": last_words(log)})
            return
        answer = json.loads(out.read_text(encoding="utf-8"))
        job.note(judge={**answer, "run": job.facts["id"], "seconds": round(seconds, 1)})

    return Task(f"test of {job.label}", [str(job.folder), task], log, ended, out, module="real_benchmark.judge")


def asking_base(part: Part, model: str) -> Sequence[Task]:
    """The same of the untouched base, once for each base and task."""
    out, task = base_answer(part), part.stage.task
    if out.is_file():
        return []
    out.parent.mkdir(parents=True, exist_ok=True)
    made, log = out.with_suffix(".out"), out.with_suffix(".log")

    def ended(code: int, seconds: float) -> None:
        if code == 0:
            made.replace(out)

    return [Task(f"test of the base, {task}", [model, task], log, ended, made, "real_benchmark.judge")]


def base_answer(part: Part) -> Path:
    return WORK / "base" / f"{part.recipe.parent.name}-{part.stage.task}.json"


def judged(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """What the judge has said, by run and seed."""
    found: dict[str, dict[str, Any]] = {}
    for job in jobs:
        answer = job.record.get("judge", {})
        if "loss" in answer:
            kept = {key: answer[key] for key in ("loss", "figure", "general", "samples")}
            found.setdefault(job.variant.name, {})[str(job.seed)] = kept
    return found


def keep(part: Part) -> None:
    """The figures of a finished part in docs/benchmark/real; the runs, up to a gigabyte each, are removed."""
    folder, name = part.folder, part.stage.name
    compared = files.read_json(folder / "compare.json")
    kept = keeping.of_comparison(compared, folder / "cost.json") | {"comparison": f"{part.group}/{name}"}
    for row, full in zip(kept["methods"], compared["methods"], strict=True):
        row |= {key: full[key] for key in OF_METHOD}
    if (folder / "judged.json").is_file():
        kept["judged"] = files.read_json(folder / "judged.json")
        kept["base"] = files.read_json(base_answer(part))
    path = KEPT / part.group / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, compact(kept))
    shutil.rmtree(folder)


def compact(facts: dict[str, Any]) -> str:
    """JSON with a line for each entry of a list: small, and readable in a diff."""
    lines = []
    for key, value in facts.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            inside = ",\n  ".join(json.dumps(one) for one in value)
            lines.append(f" {json.dumps(key)}: [\n  {inside}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"

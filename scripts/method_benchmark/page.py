"""docs/benchmark.md and its picture, made of the files in docs/benchmark."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.page_table import table

from lrft import registry
from lrft.compare.columns import NOTHING, number
from lrft.utils import files
from lrft.utils.text import duration
from method_benchmark import picture
from method_benchmark.files import KEPT, LATER, OF_ADDED, OF_NEWER, OPTIONS, OUTSIDE, SEARCH, SEARCHED, SEEDS
from method_benchmark.tasks import TASKS, rows

WRITTEN, DRAWN = Path("docs/benchmark.md"), Path("docs/benchmark.svg")
FAR = 0.1
"""share by which the trainable parameters may miss the baseline's without a mark"""
Facts = Mapping[str, Any]

TOP = """\
# Every method, the same recipe

Each method of `lrft` on three small tasks, with as many trainable parameters as a LoRA of rank 8 on all linear layers
where that can be chosen (elsewhere a factor stands beside them), each at the best of three to five learning rates on
the first task. `scripts/benchmark` makes this page; the comparisons are in [recipes/benchmark](../recipes/benchmark),
the figures in [docs/benchmark](benchmark).

**It is no ranking for your data.** The base is a toy, the tasks are toys, and small differences are chance. What it
does say: which methods learn at this budget, and which need other learning rates. What a step of each costs is in
[performance.md](performance.md). For an answer on your own model and data copy one of the files and run `lrft compare`.
"""

FOOT = """\
## The setting

- The base: a Llama of three blocks and width 256 (2.1 million weights), trained from random weights by
  `lrft train recipes/benchmark/base.yaml` on 12,000 lines of a small closed English (little stories, sums up to 20,
  lists and what stands where in them), all linear layers and the head in full; its embedding stays random. The
  tokenizer has a token for each word and each digit.
- The tasks are drawn by [scripts/method_benchmark/tasks.py](../scripts/method_benchmark/tasks.py), in the public
  domain: 512 rows to train, 256 others to measure. The base has seen lists and sums, not the questions.
- 120 steps of 8 rows (not quite twice through), AdamW without decay, the learning rate falls in a line after a tenth of
  warm-up, float32. The loss is that of the answers' tokens, in nats. No dropout: early-late-dropout, which moves it in
  time, is LoRA here.
- Learning rates are searched on the instructions with seed 1, and taken over by the three tasks, which train with
  other seeds, so that a rate which suited its seed by chance gains nothing by it. They are 0.001, 0.003 and 0.01;
  some methods get others, higher where little is trained or it is damped, lower where the weights themselves are
  trained, and one or two more where the best lay at the end. A rate at the edge of its list is marked *: a better one
  may lie beyond.
- A seed draws the adapters' first values and the order of the rows. Base and rows are the same for all.

```bash
scripts/benchmark run                  # the base, the data, every run, docs/benchmark and this page
scripts/benchmark run rates            # one of its comparisons; what was broken off goes on
scripts/benchmark run rates-newer      # the search of the newest methods; their tasks follow, as instructions-newer
scripts/benchmark files                # recipes/benchmark, after a method was added
scripts/benchmark                      # this page alone, from docs/benchmark
```
"""


def write() -> None:
    kept = {path.stem: files.read_json(path) for path in KEPT.glob("*.json")}
    files.write_text(WRITTEN, page(kept))
    picture.draw(changes(first_runs(kept)), DRAWN)


def page(kept: Mapping[str, Facts]) -> str:
    """The whole page. kept: by comparison."""
    first, later = first_runs(kept), added(kept)
    parts = [TOP, "![change of the loss against LoRA, by method](benchmark.svg)\n", legend(first), main_table(first)]
    parts += [notes(first)]
    if later:
        parts += [later_section(later)]
    return "\n".join([*parts, left_out(first), samples(), FOOT])


def first_runs(kept: Mapping[str, Facts]) -> dict[str, Facts]:
    """The comparisons of the first runs, and in them the rows of `files.LATER`."""
    first = {name: facts for name, facts in kept.items() if not name.endswith((OF_ADDED, OF_NEWER))}
    if not all(name + OF_NEWER in kept for name in first):
        return first
    return {name: joined(facts, kept[name + OF_NEWER]) for name, facts in first.items()}


def joined(first: Facts, newer: Facts) -> Facts:
    """One comparison of both. Raises ValueError unless the baseline came out the same, to the bit: over another base,
    or on a machine that rounds otherwise, figures cannot stand in one table."""
    base, again = (by_run(facts)[first["baseline"]] for facts in (first, newer))
    if base["values"] != again["values"]:
        raise ValueError(f"the baseline was {base['values']}, and beside the newer methods {again['values']}")
    rows = [row for row in newer["methods"] if row["run"] != first["baseline"]]
    grid = [point for point in newer["grid"] if point["run"] != first["baseline"]]
    return {
        **first,
        "methods": [*first["methods"], *rows],
        "grid": [*first["grid"], *grid],
        "failed": [*first["failed"], *newer["failed"]],
        "runs": Counter(first["runs"]) + Counter(newer["runs"]),
        "cost": {key: first["cost"][key] + newer["cost"][key] for key in first["cost"]},
        "date": max(first["date"], newer["date"]),
    }


def added(kept: Mapping[str, Facts]) -> dict[str, Facts]:
    """The comparisons of `files.ADDED`, by SEARCH and task."""
    return {name.removesuffix(OF_ADDED): facts for name, facts in kept.items() if name.endswith(OF_ADDED)}


def by_run(facts: Facts) -> dict[str, Facts]:
    return {row["run"]: row for row in facts["methods"]}


def of_tasks(kept: Mapping[str, Facts]) -> dict[str, Facts]:
    return {task: kept[task] for task in TASKS}


def changes(kept: Mapping[str, Facts]) -> dict[str, dict[str, list[float]]]:
    """loss - LoRA's for each seed, by run and task, the best mean over the tasks first; a run that has no figure for
    some task is left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for task, facts in of_tasks(kept).items():
        base = by_run(facts)[facts["baseline"]]["values"]
        for row in facts["methods"]:
            if row["mean"] is not None:
                found.setdefault(row["run"], {})[task] = [row["values"][seed] - base[seed] for seed in base]
    whole = {run: those for run, those in found.items() if len(those) == len(TASKS)}
    return dict(sorted(whole.items(), key=lambda one: sum(map(statistics.fmean, one[1].values()))))


def legend(kept: Mapping[str, Facts]) -> str:
    """What the numbers of the table are, and how far chance moves them."""
    seeds = SEEDS[next(iter(TASKS))]
    apart = [
        statistics.median(max(values) - min(values) for row in facts["methods"] if (values := row["values"].values()))
        for facts in of_tasks(kept).values()
    ]
    return (
        f"Validation loss, mean ± standard deviation over the seeds {' and '.join(map(str, seeds))}; in the order of "
        f"the mean over the tasks. How far chance moves them: the seeds of one method lie "
        f"{', '.join(format(value, '.3f') for value in apart)} apart on the three tasks (median over the methods).\n"
    )


def main_table(kept: Mapping[str, Facts]) -> str:
    search = kept[SEARCH]
    tasks = {task: by_run(facts) for task, facts in of_tasks(kept).items()}
    first = next(iter(tasks.values()))
    base = first[search["baseline"]]
    ordered = [*changes(kept)]
    ordered += [run for run in first if run not in ordered]
    lines = [
        [
            str(place),
            f"**{run}**" if run == base["run"] else run,
            kind(run),
            trained(first[run], base),
            rate_text(by_run(search)[run], search),
            *(loss(those[run]) for those in tasks.values()),
        ]
        for place, run in enumerate(ordered, 1)
    ]
    return table(["", "method", "kind", "trained", "rate", *tasks], lines, words=3)


def loss(row: Facts) -> str:
    """`1.691 ± 0.012`."""
    spread = "" if row["spread"] is None else f" ± {row['spread']:.3f}"
    return number(row["mean"], ".3f") + spread


def kind(run: str) -> str:
    return "preset" if run in registry.PRESETS else registry.methods()[run].kind


def trained(row: Facts, base: Facts) -> str:
    share = row["trained"] / base["trained"]
    return f"{row['trained']:,}" + ("" if abs(share - 1) <= FAR else f" (x {share:.2g})")


def rate_text(row: Facts, facts: Facts) -> str:
    """The best learning rate; one at the edge of what was tried has a star."""
    if row["best"] is None:
        return NOTHING
    rate = row["best"]["training.learning_rate"]
    tried = [
        point["point"]["training.learning_rate"]
        for point in facts["grid"]
        if point["run"] == row["run"] and point["mean"] is not None
    ]
    return f"{rate:g}{'*' if rate in (min(tried), max(tried)) else ''}"


MEASURED_LATER = """\
## Measured later

Newer methods in the same comparisons, on another machine ({cpu}). The base was trained there by the same recipe, which
rounding makes another base: compare with {baseline} in this table, not with the table above. `search` is the best loss
of the search ({searched}, seed 1). Some were trained on the tasks too, at that rate and with the other seeds.
{cost}
"""


def later_section(later: Mapping[str, Facts]) -> str:
    search = later[SEARCH]
    tasks = [task for task in TASKS if task in later]
    found = by_run(search)
    base = found[search["baseline"]]
    ordered = sorted(found.values(), key=lambda row: float("inf") if row["mean"] is None else row["mean"])
    lines = []
    for place, row in enumerate(ordered, 1):
        run = row["run"]
        figures = [loss(rows[run]) if run in rows else "" for rows in (by_run(later[task]) for task in tasks)]
        shown = f"**{run}**" if run == base["run"] else run
        of_search = [rate_text(row, search), loss(row)]
        lines.append([str(place), shown, kind(run), trained(row, base), *of_search, *figures])
    head = MEASURED_LATER.format(
        cpu=search["machine"]["cpu"], baseline=base["run"], searched=SEARCHED, cost=clock(later.values())
    )
    return head + "\n" + table(["", "method", "kind", "trained", "rate", "search", *tasks], lines, words=3)


def clock(facts: Iterable[Facts]) -> str:
    """`126 runs in 1 h 5 min on the clock, beside other work, 2026-12-01.`"""
    those = list(facts)
    runs = sum(sum(each["runs"].values()) for each in those)
    wall = duration(sum(each["cost"]["wall_seconds"] for each in those))
    return f"{runs} runs in {wall} on the clock, beside other work, {max(each['date'] for each in those)}."


def notes(kept: Mapping[str, Facts]) -> str:
    lines = []
    for name, given in OPTIONS.items():
        lines.append(f"- {name} with {', '.join(f'{key}: {value}' for key, value in given.items())}")
    failed = [f"- {name}, {one['run']}: {one['said']}" for name, facts in kept.items() for one in facts["failed"]]
    cpu = sum(facts["cost"]["cpu_seconds"] for facts in kept.values()) / 3600
    runs = sum(sum(facts["runs"].values()) for facts in kept.values())
    search = kept[SEARCH]
    machine = search["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "lrft"))
    wall = duration(sum(facts["cost"]["wall_seconds"] for facts in kept.values()))
    said = (
        f"{runs} runs, {cpu:.1f} CPU hours with all merge checks, without the base ({wall} on the clock, two at a "
        f"time, beside other work), {max(facts['date'] for facts in kept.values())}; {machine['cpu']}, "
        f"{machine['threads']} thread a run; {versions}.\n"
    )
    failed = ["", "Runs that gave no figure:", "", *failed] if failed else []
    return "\n".join([said, "Options that are not the defaults:", "", *lines, *failed]) + "\n"


def left_out(first: Mapping[str, Facts]) -> str:
    """The methods without a row, by the reason."""
    waiting = [name for name in LATER if any(name not in by_run(facts) for facts in first.values())]
    left = {**OUTSIDE, **dict.fromkeys(waiting, "newer than these runs")}
    reasons = dict.fromkeys(left.values())
    lines = [f"- {', '.join(n for n, why in left.items() if why == reason)}: {reason}" for reason in reasons]
    return "\n".join(["Methods in no table:", "", *lines]) + "\n"


def samples() -> str:
    shown = [[task, *row.values()] for task in TASKS for row in rows(task, 3, seed=2)]
    return "## The tasks\n\n" + table(["task", "prompt", "answer"], shown)

"""docs/benchmark.md and its picture, made of the files in docs/benchmark."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.page_table import table

from lrft import registry
from lrft.compare.columns import NOTHING, number
from lrft.utils import files
from lrft.utils.text import duration
from method_benchmark import picture
from method_benchmark.files import ADDED, KEPT, OF_ADDED, OPTIONS, OUTSIDE, SEARCH, SEEDS
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
scripts/benchmark files                # recipes/benchmark, after a method was added
scripts/benchmark                      # this page alone, from docs/benchmark
```
"""


def write() -> None:
    kept = {path.stem: files.read_json(path) for path in KEPT.glob("*.json")}
    files.write_text(WRITTEN, page(kept))
    picture.draw(changes(kept), DRAWN)


def page(kept: Mapping[str, Facts]) -> str:
    """The whole page. kept: by comparison."""
    parts = [TOP, "![change of the loss against LoRA, by method](benchmark.svg)\n", legend(kept), main_table(kept)]
    parts += [notes(kept), samples(), FOOT]
    return "\n".join(parts)


def by_run(facts: Facts) -> dict[str, Facts]:
    return {row["run"]: row for row in facts["methods"]}


def parts(kept: Mapping[str, Facts]) -> list[dict[str, Facts]]:
    """The comparisons by SEARCH and task: those of the first runs, then those of ADDED."""
    whole = [{name: kept.get(name + ending) for name in (SEARCH, *TASKS)} for ending in ("", OF_ADDED)]
    return [{name: facts for name, facts in part.items() if facts} for part in whole if part[SEARCH]]


def of_run(kept: Mapping[str, Facts], run: str) -> dict[str, Facts]:
    """The comparisons that have a run: the first ones where both do."""
    return next(part for part in parts(kept) if run in by_run(part[SEARCH]))


def changes(kept: Mapping[str, Facts]) -> dict[str, dict[str, list[float]]]:
    """loss - LoRA's of the same comparison for each seed, by run and task, the best mean over the tasks first; a run
    that has no figure for some task is left out."""
    found: dict[str, dict[str, list[float]]] = {}
    for task, facts in ((task, part[task]) for part in reversed(parts(kept)) for task in TASKS):
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
        statistics.median(
            max(values) - min(values)
            for part in parts(kept)
            for row in part[task]["methods"]
            if (values := row["values"].values())
        )
        for task in TASKS
    ]
    return (
        f"Validation loss, mean ± standard deviation over the seeds {' and '.join(map(str, seeds))}; in the order of "
        f"the mean over the tasks of the difference to LoRA. How far chance moves them: the seeds of one method lie "
        f"{', '.join(format(value, '.3f') for value in apart)} apart on the three tasks (median over the methods).\n"
        + again(kept)
    )


def again(kept: Mapping[str, Facts]) -> str:
    """How LoRA did beside the methods that were measured later."""
    first, *later = parts(kept)
    if not later:
        return ""
    name = first[SEARCH]["baseline"]
    losses = [", ".join(loss(by_run(part[task])[name]) for task in TASKS) for part in (first, *later)]
    return (
        f"\nThe {len(ADDED)} methods marked † were measured later, on {later[0][SEARCH]['machine']['cpu']}, over a "
        f"base trained there by the same recipe, and {name} with them: {losses[1]} there, {losses[0]} in the table. "
        f"Order and picture take each method against the {name} beside which it was measured.\n"
    )


def main_table(kept: Mapping[str, Facts]) -> str:
    ordered = [*changes(kept)]
    ordered += [run for part in parts(kept) for run in by_run(part[SEARCH]) if run not in ordered]
    lines = [line(place, run, of_run(kept, run)) for place, run in enumerate(ordered, 1)]
    return table(["", "method", "kind", "trained", "rate", *TASKS], lines, words=3)


def line(place: int, run: str, part: Mapping[str, Facts]) -> list[str]:
    search = part[SEARCH]
    row, base = (by_run(part[next(iter(TASKS))])[name] for name in (run, search["baseline"]))
    shown = f"**{run}**" if run == base["run"] else run + " †" * (run in ADDED)
    figures = [loss(by_run(part[task])[run]) for task in TASKS]
    return [str(place), shown, kind(run), trained(row, base), rate_text(by_run(search)[run], search), *figures]


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


def notes(kept: Mapping[str, Facts]) -> str:
    lines = [f"- {name}: not in the table, {why}" for name, why in OUTSIDE.items()]
    for name, given in OPTIONS.items():
        lines.append(f"- {name} with {', '.join(f'{key}: {value}' for key, value in given.items())}")
    failed = [f"- {name}, {one['run']}: {one['said']}" for name, facts in kept.items() for one in facts["failed"]]
    cpu = sum(facts["cost"]["cpu_seconds"] for facts in kept.values()) / 3600
    runs = sum(sum(facts["runs"].values()) for facts in kept.values())
    machines = [part[SEARCH]["machine"] for part in parts(kept)]
    cpus = " and ".join(dict.fromkeys(machine["cpu"] for machine in machines))
    machine = machines[0]
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "lrft"))
    wall = duration(sum(facts["cost"]["wall_seconds"] for facts in kept.values()))
    said = (
        f"{runs} runs, {cpu:.1f} CPU hours with all merge checks, without the base ({wall} on the clock, "
        f"beside other work), {max(facts['date'] for facts in kept.values())}; {cpus}, "
        f"{machine['threads']} thread a run; {versions}.\n"
    )
    failed = ["", "Runs that gave no figure:", "", *failed] if failed else []
    return "\n".join([said, "Options that are not the defaults:", "", *lines, *failed]) + "\n"


def samples() -> str:
    shown = [[task, *row.values()] for task in TASKS for row in rows(task, 3, seed=2)]
    return "## The tasks\n\n" + table(["task", "prompt", "answer"], shown)

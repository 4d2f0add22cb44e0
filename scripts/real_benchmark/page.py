"""docs/benchmark-real.md and its picture, made of the files in docs/benchmark/real."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common.page_table import table

from lrft.compare.columns import NOTHING, merge_text, number
from lrft.compare.intervals import mean, spread
from lrft.utils import files
from lrft.utils.text import duration
from real_benchmark import claims, design, peers, picture, plan, results, stages
from real_benchmark.design import ALL, BASELINE, Tier
from real_benchmark.page_text import FOOT, TOP
from real_benchmark.results import Facts
from real_benchmark.rows.all import TASKS
from real_benchmark.statistics import Difference

WRITTEN, DRAWN = Path("docs/benchmark-real.md"), Path("docs/benchmark-real.svg")
NOT_RUN = "not run"


def write() -> None:
    files.write_text(WRITTEN, page())
    tier = results.best_tier()
    if tier is not None:
        picture.draw(tier, DRAWN)


def page() -> str:
    tier = results.best_tier()
    parts = [TOP, tasks_table(), "## Results\n"]
    if tier is None:
        parts.append("**Not run yet.** No figure of a real model stands on this page so far.\n")
    else:
        parts += [beyond_chance(tier), f"![test loss against time, by method]({DRAWN.name})\n"]
    for one in ALL:
        parts += tier_section(one)
    return "\n".join([*parts, claims_section(), peers.section(peers.kept()), FOOT])


def tasks_table() -> str:
    rows = []
    for task in TASKS.values():
        row = task.sets().test[0]
        shown = [text.replace("\n", " ↵ ").replace("|", "\\|") for text in (row["prompt"], row["completion"].strip())]
        rows.append([task.name, task.says, task.figure, f"`{shown[0].strip()}`", f"`{shown[1]}`"])
    return "## The tasks\n\n" + table(["task", "what", "figure", "a prompt of the test rows", "its answer"], rows, 5)


def beyond_chance(tier: Tier) -> str:
    """The methods that differ from the baseline, by task: the loss first, then the figure."""
    done = results.finals(tier)
    rows = []
    for task in tier.tasks:
        if task not in done:
            rows.append([task, NOT_RUN, NOT_RUN, NOT_RUN, NOT_RUN])
            continue
        loss, figure = (results.against_baseline(done[task], name) for name in ("loss", "figure"))
        below, above = (signed(loss, sign) for sign in (-1, 1))
        rows.append([task, below, above, signed(figure, 1), signed(figure, -1)])
    head = ["task", "lower test loss", "higher test loss", "better answers", "worse answers"]
    said = (
        f"Methods that differ from {BASELINE} beyond chance (Holm, 5 % over the methods of a task), tier {tier.name}:"
    )
    return f"{said}\n\n" + table(head, rows, 5)


def signed(found: dict[str, Difference], sign: int) -> str:
    names = [name for name, one in found.items() if one.differs and one.mean * sign > 0]
    return ", ".join(sorted(names)) or "none"


def tier_section(tier: Tier) -> list[str]:
    """A tier with figures has a table for each task; one without has a line."""
    done = results.finals(tier)
    parts = [f"### Tier {tier.name}: {tier.says}\n"]
    stages_done = [kept for stage in plan.stages(tier) if (kept := stages.kept(tier.name, stage.name)) is not None]
    if not stages_done:
        return [*parts, f"{NOT_RUN.capitalize()}: `scripts/benchmark real --tier {tier.name}`.\n"]
    parts.append(spent(stages_done, len(plan.stages(tier))))
    if tier.screens:
        parts.append(screened(tier))
    for task in tier.tasks:
        parts.append(task_table(task, done[task]) if task in done else f"{task}: {NOT_RUN}.\n")
    failed = [f"- {kept['comparison']}, {one['run']}: {one['said']}" for kept in stages_done for one in kept["failed"]]
    if failed:
        parts.append("\n".join(["Runs that gave no figure:", "", *failed]) + "\n")
    return parts


def spent(kept: Iterable[Facts], of: int) -> str:
    """`3 of 12 stages, 40 runs, 1.2 CPU hours ...`"""
    those = list(kept)
    machine = those[-1]["machine"]
    cpu = sum(one["cost"]["cpu_seconds"] for one in those) / 3600
    wall = duration(sum(one["cost"]["wall_seconds"] for one in those))
    runs = sum(sum(one["runs"].values()) for one in those)
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "transformers", "lrft"))
    return (
        f"{len(those)} of {of} stages, {runs} runs, {cpu:.1f} CPU hours with all checks ({wall} on the clock), "
        f"{max(one['date'] for one in those)}; {machine['cpu']}, {machine['threads']} thread; {versions}.\n"
    )


def screened(tier: Tier) -> str:
    """Who was left by the halving."""
    lines = []
    for stage in (stage for stage in plan.stages(tier) if stage.kind in ("screen", "narrow")):
        found = stages.kept(tier.name, stage.name)
        if found is None:
            lines.append(f"- {stage.name}: {NOT_RUN}")
            continue
        ordered = stages.best(found, len(found["methods"]))[1:]
        left = plan.survivors(tier) if stage.kind == "screen" else tier.finalists
        losses = {row["run"]: row["mean"] for row in found["methods"]}
        said = ", ".join(f"{name} {losses[name]:.3f}" for name in ordered)
        lines.append(f"- {stage.name} ({stage.steps} steps), {BASELINE} {losses[BASELINE]:.3f}, {left} went on: {said}")
    return "Validation losses of the halving, the best first:\n\n" + "\n".join(lines) + "\n"


def task_table(task: str, facts: Facts) -> str:
    """A line for each method, by its test loss."""
    rows = {row["run"]: row for row in facts["methods"]}
    losses, shares, general = (results.figures(facts, name) for name in ("loss", "figure", "general"))
    against = results.against_baseline(facts, "loss")
    better = results.against_baseline(facts, "figure")
    base, speed = facts["base"], rows[BASELINE]["tokens_per_second"]
    lines = [["untouched base", "", "", f"{base['loss']:.3f}", "", f"{base['figure']:.3f}", *[""] * 6]]
    for run in sorted(losses, key=lambda run: mean(losses[run])):
        row = rows[run]
        rise = mean(general[run]) - base["general"]
        lines.append(
            [
                f"**{run}**" if run == BASELINE else run,
                f"{row['trained']:,}",
                f"{row['best']['training.learning_rate']:g}",
                spreading(losses[run]),
                apart(against.get(run)),
                spreading(shares[run]),
                apart(better.get(run)),
                f"{rise:+.3f}",
                f"{speed / row['tokens_per_second']:.2f}",
                number(row["memory_gb"], ".2f"),
                merge_text(row),
                row["exports_to"] or NOTHING,
            ]
        )
    lines += [[run, *[NOT_RUN] * 2, *[""] * 9] for run in rows if run not in losses]
    head = ["method", "trained", "rate", "test loss", f"less {BASELINE}'s", TASKS[task].figure, f"less {BASELINE}'s"]
    head += ["general text", "time", "GB", "merged", "exports to"]
    return f"#### {task}\n\n" + table(head, lines, 1)


def spreading(values: list[float]) -> str:
    deviation = spread(values)
    return f"{mean(values):.3f}" + ("" if deviation is None else f" ± {deviation:.3f}")


def apart(found: Difference | None) -> str:
    """`-0.012 (-0.030 to +0.006)`, bold where it is beyond chance."""
    if found is None:
        return ""
    interval = "" if found.low is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    text = f"{found.mean:+.3f}{interval}"
    return f"**{text}**" if found.differs else text


def claims_section() -> str:
    rows = []
    for claim in claims.CLAIMS:
        found = stages.kept(claims.FOLDER, f"{claim.name}-final")
        verdict = NOT_RUN if found is None else claims.verdict(claim, results.figures(found, claim.figure))
        rows.append([claim.name, claim.says, claim.paper, claim.task, verdict])
    text = (
        "## Claims of papers, on this model\n\nThe claims of [claims.md](claims.md) that say something of pretrained "
        "models, with the runner of this page: rates searched on the validation rows with seed "
        f"{design.SEARCH_SEEDS[0]}, test rows and the final seeds judged. A claim shows where its run is better on "
        "every seed. `scripts/benchmark real --claim NAME` runs one.\n\n"
    )
    return text + table(["claim", "it says", "paper", "task", "here"], rows, 5)

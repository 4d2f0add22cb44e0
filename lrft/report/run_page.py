"""report.html of a run folder, finished or not: the contents of report.md, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lrft.errors import CheckFailed, UsageError
from lrft.report import sections
from lrft.report.html_elements import COLOURS, Html, beside, bullets, details, element, page, table
from lrft.report.loss_plot import points, smooth, top_of
from lrft.report.sections import (
    Block,
    Cell,
    Points,
    Section,
    Table,
    commands_after,
    evaluations,
    pace,
    read_run,
    recorded,
    summary,
    training_by_source,
    verdict,
)
from lrft.report.svg_charts import Line, bars, chart
from lrft.runs.after import of_run
from lrft.runs.metrics import by_source, of_kind, read_metrics
from lrft.utils.files import read_json, room_for, write_text
from lrft.utils.text import count

LOG_SHOWN = 40  # lines of log.txt, the last ones
OPEN_SAMPLES = 1  # evaluations whose answers are shown without a click: the last


def write_page(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page to `out`, or to report.html in the run; returns where.

    Raises UsageError when `run_dir` is no run, CheckFailed when run.json is broken.
    """
    if not (run_dir / "run.json").is_file():
        raise UsageError(f"{run_dir} is not a run folder (no run.json)")
    path = out or run_dir / "report.html"
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written", "Choose a file in an existing folder with -o.")
    made = render(run_dir)
    with room_for(path):
        write_text(path, made)
    return path


def render(run_dir: Path) -> Html:
    run = read_run(run_dir)
    records, unreadable = read_metrics(run_dir / "metrics.jsonl")
    log = last_lines(run_dir / "log.txt")
    done, words = state(run, records, log)
    title = str(run.get("title", run_dir.resolve().name))
    by_length = lengths_of(run)
    sections = {section.name: section for section in recorded(without_lengths(run))}
    first = [sections.pop(name) for name in ("Result", "Warnings", "Checks") if name in sections]
    return page(
        title,
        element("h1", title),
        element("p", words, class_="dim" if done else "bad"),
        *([element("p", worse, class_="bad")] if (worse := verdict(run)) else []),
        *_block(summary(run, records)),
        *(_section(section) for section in commands_after(run_dir)),
        *afterwards(run_dir),
        *(_section(section) for section in first),
        element("h2", "Curves"),
        beside(*curves(records)),
        *(
            _section(section)
            for section in [pace(records, unreadable), *training_by_source(records), *evaluations(records)]
        ),
        *answers(records),
        element("h2", "Row lengths"),
        beside(bars("Rows by length", by_length, across="tokens per row", note="training and validation rows")),
        *(_section(section) for section in sections.values()),
        *environment(run_dir / "environment.json"),
        *recipe(run_dir / "resolved.yaml"),
        element("h2", "Log"),
        details("the last lines of log.txt", element("pre", "\n".join(log) or "(empty)"), is_open=not done),
    )


def state(run: dict[str, Any], records: Sequence[dict[str, Any]], log: Sequence[str]) -> tuple[bool, str]:
    """(whether the run came to its end, how far it came in words)."""
    steps = of_kind(records, "step")
    done = steps[-1]["step"] if steps else 0
    training = run.get("training")
    total = training.get("steps") if isinstance(training, dict) else None
    if not isinstance(total, int):
        return False, "No step was recorded: the run stopped before its first step, or has not reached it yet."
    if done >= total:
        return True, f"Finished: {count(total, 'step')}."
    if any(line.startswith("stopping early") for line in log):
        return True, f"Stopped early after {done:,} of {count(total, 'step')}."
    return (
        False,
        f"Not finished: {done:,} of {count(total, 'step')}. See the end of the log, or the run is still in progress.",
    )


def last_lines(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return lines[-LOG_SHOWN:]


def curves(records: Sequence[dict[str, Any]]) -> list[Html]:
    """Losses, learning rate, gradient norm, speed and memory over the steps."""
    steps = of_kind(records, "step")
    speeds = points(steps, "tokens_per_second")
    return [
        loss_chart(steps, of_kind(records, "eval")),
        *source_chart(steps),
        chart("Learning rate", [Line("learning rate", points(steps, "lr"), 2)], from_zero=True),
        chart("Gradient norm, before clipping", [Line("gradient norm", points(steps, "grad_norm"), 3)], capped=True),
        chart("Tokens per second", [Line("tokens per second", speeds, 5)], capped=True, from_zero=True),
        chart("Memory, GB", [Line("memory", points(steps, "memory_gb"), 4)], from_zero=True),
    ]


def loss_chart(steps: Sequence[dict[str, Any]], evals: Sequence[dict[str, Any]]) -> Html:
    """As loss.png: the training loss as it is and smoothed, no higher than its bulk and the validation loss."""
    train, validation = points(steps, "loss"), points(evals, "loss")
    top = top_of(train, validation) if train else 0.0
    held = [(step, min(loss, top)) for step, loss in train]
    smoothed = [(step, loss) for (step, _), loss in zip(held, smooth([y for _, y in held]), strict=True)]
    bad = len(steps) + len(evals) - len(train) - len(validation)
    above = [loss for _, loss in train if loss > top]
    notes = [
        *([f"{len(above):,} training losses are above this panel, up to {max(above):.3g}"] if above else []),
        *([f"{bad:,} losses are not finite"] if bad else []),
    ]
    lines = [
        Line("each step", held, 0, faint=True),
        Line("training, smoothed", smoothed, 0),
        Line("validation", validation, 1, dotted=True),
    ]
    return chart("Loss, nats per token", lines, note="; ".join(notes))


def source_chart(steps: Sequence[dict[str, Any]]) -> list[Html]:
    """The training loss of each source, smoothed; none where they are not told apart."""
    lines = []
    for at, (name, found) in enumerate(by_source(steps).items()):
        smoothed = smooth([loss for _, loss in found])
        lines.append(Line(name, [(step, y) for (step, _), y in zip(found, smoothed, strict=True)], at % COLOURS))
    return [chart("Training loss by source, smoothed", lines, capped=True)] if lines else []


def answers(records: Sequence[dict[str, Any]]) -> list[Html]:
    """The samples of every evaluation; all but the last are folded away."""
    made = []
    for section in sections.samples(records, every=True):
        pairs = list(zip(section.blocks[::2], section.blocks[1::2], strict=True))
        made.append(element("h2", section.name))
        for at, (words, answered) in enumerate(pairs):
            summary = words.text if isinstance(words, sections.Words) else ""
            made.append(details(summary, *_block(answered), is_open=at >= len(pairs) - OPEN_SAMPLES))
    return made


def afterwards(run_dir: Path) -> list[Html]:
    """What commands found out about the run since, oldest first; nothing when none did."""
    held = [(name, one) for name, entries in of_run(run_dir).items() for one in entries]
    told = [
        part for name, one in sorted(held, key=lambda pair: str(pair[1].get("at", ""))) for part in after(name, one)
    ]
    return [element("h2", "Since then"), *told] if told else []


def after(name: str, entry: Mapping[str, Any]) -> list[Html]:
    """One command: when, its figures, and the check that did not hold."""
    found = entry.get("found")
    lines = [f"{key}: {value}" for key, value in found.items()] if isinstance(found, Mapping) else []
    failed = [f"FAILED, exit code {entry.get('exit code')}: {entry['failed']}"] if entry.get("failed") else []
    when = str(entry.get("at", "")).replace("T", " ").removesuffix("Z")
    return [
        element("h3", element("code", str(entry.get("command", name)))),
        element("p", f"{when} UTC", class_="dim"),
        *(element("p", words, class_="bad") for words in failed),
        *([bullets(lines)] if lines else []),
    ]


def lengths_of(run: dict[str, Any]) -> list[tuple[float, float, float]]:
    """The bars of the histogram; none for a run that did not record it."""
    data = run.get("data")
    kept = data.get("by_length", []) if isinstance(data, dict) else []
    edges = [0, *(one["up_to"] for one in kept)]
    return [(first, one["up_to"], one["rows"]) for first, one in zip(edges, kept, strict=False)]


def without_lengths(run: dict[str, Any]) -> dict[str, Any]:
    """What run.json holds but for the histogram, which is drawn."""
    data = run.get("data")
    return {**run, "data": {k: v for k, v in data.items() if k != "by_length"}} if isinstance(data, dict) else run


def environment(path: Path) -> list[Html]:
    try:
        found = read_json(path)
    except CheckFailed as error:
        return [element("h2", "Environment"), element("p", error.message, class_="dim")]
    return [_section(sections.section("environment", found))]


def recipe(path: Path) -> list[Html]:
    """Every key of the resolved recipe with the origin of its value, as `resolved.yaml` says it."""
    title = element("h2", "Recipe")
    if not path.is_file():
        return [title, element("p", f"{path} is missing", class_="dim")]
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line[:1] != "#"]
    split = [line.rpartition("  # ") if "  # " in line else (line, "", "") for line in lines]
    rows = [[element("code", value), origin] for value, _, origin in split]
    return [title, details("every key with its value and origin", table(["key", "origin"], rows), is_open=True)]


def _section(section: Section) -> Html:
    parts = [part for block in section.blocks for part in _block(block)]
    return element("section", element("h2", section.name), *parts)


def _block(block: Block) -> list[Html]:
    if isinstance(block, Table):
        title = [element("h3", block.title)] if block.title else []
        return [*title, table(block.head, [[_cell(cell) for cell in row] for row in block.rows])]
    return [bullets(block.items) if isinstance(block, Points) else element("p", block.text)]


def _cell(cell: Cell) -> Html:
    words = [cell.text] if cell.text else []
    return element("span", *words, *([" ", element("em", cell.remark, class_="dim")] if cell.remark else []))

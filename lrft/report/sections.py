"""Contents of a run's files as sections (tables, lists, paragraphs), for report.md and report.html.

All text here is as it came, from data and names too: whoever writes it out escapes it.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lrft.errors import CheckFailed
from lrft.runs.after_training import kept
from lrft.runs.metrics import by_source, of_kind, values
from lrft.runs.verdict import BEST, LAST, START, worse_than_base
from lrft.utils.files import read_json
from lrft.utils.text import command, count, decimals, duration

SECTIONS = (
    "result",
    "checks",
    "warnings",
    "model",
    "adapter",
    "data",
    "training",
)
KEY = re.compile(r"[a-z]\w*(: \w+)*", re.ASCII)
# Keys of run.json and environment.json that say too little by themselves.
NAMES = {
    "hit": "found in the cache",
    "key": "key in the cache",
    "memory_gb": "memory, GB",
    "torch: memory_gb": "torch: memory, GB",
    "lengths: 5": "tokens per row, 5th percentile",
    "lengths: 50": "tokens per row, median",
    "lengths: 95": "tokens per row, 95th percentile",
    "lengths: max": "tokens per row, largest",
    "read": "records read",
    "used": "records used",
    "truncated": "rows cut at the limit",
    "max_length": "limit of tokens per row",
    "max_length_from": "limit from",
    "special_text": "rows with a special token's text, taken as plain text",
    "special_read": "rows with a special token's text, read as the token",
    "foreign_text": "rows with marks of another model's chat template, taken as plain text",
    "foreign_tokens": "marks of another model's chat template",
    "altered": "rows that the chat template changes",
    "repeated": "validation rows also among the train rows",
    "opening": "trained before each answer",
    "held_out": "validation rows from",
    "cores_usable": "cores that may be used",
}
LIST_SHOWN = 20  # items of one list
SAMPLE_SHOWN = 600  # characters of one text of a sample


class Cell(NamedTuple):
    """`remark`: words of lrft's own behind the text, to be told apart from it."""

    text: str
    remark: str = ""


@dataclass(frozen=True)
class Table:
    head: list[str]
    rows: list[list[Cell]]
    title: str = ""


@dataclass(frozen=True)
class Points:
    items: list[str]


@dataclass(frozen=True)
class Words:
    text: str


Block = Table | Points | Words


@dataclass(frozen=True)
class Section:
    name: str
    blocks: list[Block]


def read_run(run_dir: Path) -> dict[str, Any]:
    """run.json. Raises CheckFailed when it is missing or broken."""
    run = read_json(run_dir / "run.json")
    if not isinstance(run, dict):
        raise CheckFailed(f"{run_dir / 'run.json'} is not a valid run record (no JSON object)")
    return run


def summary(run: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> Table:
    """What was trained, what came out of it, how long it took and how to do it again; without what is not known."""
    parts = {name: value if isinstance(value := run.get(name), Mapping) else {} for name in SECTIONS}
    rows = [
        ("Model", str(parts["model"].get("name", ""))),
        ("Adapter", adapter_words(parts["adapter"])),
        ("Data", data_words(parts["data"])),
        ("Result", result_words(parts["result"], records)),
        ("Time", time_words(records)),
        ("Command", command("lrft", "train", run["title"], "--fresh", expand=True) if "title" in run else ""),
    ]
    return Table(["", ""], [[Cell(name), Cell(words)] for name, words in rows if words])


def adapter_words(facts: Mapping[str, Any]) -> str:
    if not isinstance(facts.get("methods"), list):
        return ""
    names = " + ".join(map(str, facts["methods"]))
    trained = facts.get("trainable parameters")
    return f"{names}, rank {facts.get('rank')}" + (f", {in_words(trained)} trainable parameters" if trained else "")


def data_words(facts: Mapping[str, Any]) -> str:
    named = [(key, word) for key, word in (("train_rows", "train row"), ("validation_rows", "validation row"))]
    return ", ".join(count(facts[key], word) for key, word in named if isinstance(facts.get(key), int))


def result_words(result: Mapping[str, Any], records: Sequence[dict[str, Any]]) -> str:
    """The best validation loss, or the last where none beats the start; the training losses of a run without any."""
    start, best, step = result.get(START), result.get(BEST), result.get("best step")
    if worse_than_base(result):
        return f"validation loss {start:.4f} before the first step, {result.get(LAST, best):.4f} at the end"
    if best is not None and step:
        before = f"{start:.4f} before the first step, " if start is not None else ""
        return f"validation loss {before}{best:.4f} at step {step:,}, the best"
    losses = values(of_kind(records, "step"), "loss")
    return f"training loss {losses[0]:.4f} at the first step, {losses[-1]:.4f} at the last" if losses else ""


def time_words(records: Sequence[dict[str, Any]]) -> str:
    seconds = values(of_kind(records, "step"), "seconds")
    return f"{duration(sum(seconds))} in {count(len(seconds), 'step')}, without evaluations" if seconds else ""


def verdict(run: Mapping[str, Any]) -> str:
    """That the run is no better than its untouched base, as a sentence; "" when it is, or nothing is known."""
    result = run.get("result")
    worse = worse_than_base(result) if isinstance(result, Mapping) else ""
    return f"This run is {worse}." if worse else ""


def commands_after(run_dir: Path) -> list[Section]:
    """The commands of the recipe's `after`, and how they ended; nothing where there are none."""
    held = kept(run_dir)
    rows = [
        [Cell(one.command), Cell("done" if not one.exit_code else f"failed, exit code {one.exit_code}")] for one in held
    ]
    return [Section("After training", [Table(["command", ""], rows)])] if rows else []


def recorded(run: Mapping[str, Any]) -> list[Section]:
    """What run.json holds: the sections that are known in their order, then the others."""
    names = [*(name for name in SECTIONS if name in run), *(n for n in run if n not in (*SECTIONS, "title"))]
    sections = [section(name, run[name]) for name in names]
    return [one for one in sections if one.blocks]


def section(name: str, value: Any) -> Section:
    """A dict as a table of names and values, each list of dicts in it as another table; a list as points."""
    return Section(name[:1].upper() + name[1:], list(_blocks(value)))


def _blocks(value: Any) -> Iterator[Block]:
    if isinstance(value, Mapping):
        leaves = list(_leaves(value, ""))
        single = [[Cell(name_in_words(name)), Cell(in_words(item))] for name, item in leaves if not _is_table(item)]
        if single:
            yield Table(["", ""], single)
        for name, item in leaves:
            if _is_table(item):
                columns = list(dict.fromkeys(key for row in item for key in row))
                rows = [[Cell(in_words(row.get(key, ""))) for key in columns] for row in item]
                yield Table([name_in_words(key) for key in columns], rows, name_in_words(name))
    elif isinstance(value, list):
        if value:
            yield Points([in_words(item) for item in value])
    else:
        yield Words(in_words(value))


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, Mapping):
            yield from _leaves(item, f"{name}: ")
        else:
            yield name, item


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def name_in_words(name: str) -> str:
    """`train_rows` as `train rows`; names that are no keys, such as paths, stay as they are."""
    if name in NAMES:
        return NAMES[name]
    return name.replace("_", " ") if KEY.fullmatch(name) else name


def in_words(value: Any) -> str:
    """A value of JSON for people."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {in_words(item)}" for key, item in value.items())
    if isinstance(value, list):
        more = [f"and {len(value) - LIST_SHOWN:,} more"] if len(value) > LIST_SHOWN else []
        return ", ".join([*(in_words(item) for item in value[:LIST_SHOWN]), *more])
    return str(value)


def pace(records: Sequence[dict[str, Any]], unreadable: int) -> Section:
    """Steps, tokens, speed and memory. `unreadable`: lines of metrics.jsonl."""
    steps = of_kind(records, "step")
    speeds, memory = values(steps, "tokens_per_second"), values(steps, "memory_gb")
    rows = [("Recorded steps", f"{len(steps):,}")]
    rows += [("Tokens", f"{steps[-1]['tokens']:,}")] if steps and "tokens" in steps[-1] else []
    rows += [("Tokens per second, median", f"{statistics.median(speeds):,.0f}")] if speeds else []
    rows += [("Memory, largest", f"{max(memory):.2f} GB")] if memory else []
    bad = [f"{record['step']:,}" for record in steps if record.get("non_finite")]
    rows += [("Steps with values that are not finite", in_words(bad))] if bad else []
    rows += [("Unreadable lines in metrics.jsonl", str(unreadable))] if unreadable else []
    return Section("Steps", [Table(["", ""], [[Cell(name), Cell(value)] for name, value in rows])])


def best_of(evals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return next((record for record in reversed(evals) if record.get("best")), None)


def evaluations(records: Sequence[dict[str, Any]]) -> list[Section]:
    """A table of all evaluations; none where there were none."""
    evals = of_kind(records, "eval")
    if not evals:
        return []
    best = best_of(evals)
    names = list(dict.fromkeys(name for r in evals for name in r.get("figures", {})))
    sources = list(dict.fromkeys(name for r in evals for name in r.get("sources", {})))
    known = any(r.get("perplexity") is not None for r in evals)
    rows = [
        [
            Cell(f"{r['step']:,}"),
            *(Cell(score) for score in scores(r)[: 1 + known]),
            *(Cell(figure(r.get("figures", {}).get(name))) for name in names),
            *(Cell(figure(r.get("sources", {}).get(name))) for name in sources),
            Cell("best" if r is best else ""),
        ]
        for r in evals
    ]
    head = ["step", "loss", *(["perplexity"] if known else []), *names, *sources, ""]
    return [Section("Evaluations", [Table(head, rows)])]


def training_by_source(records: Sequence[dict[str, Any]]) -> list[Section]:
    """A table of the training losses of the sources; none where they are not told apart."""
    rows = []
    for name, found in by_source(of_kind(records, "step")).items():
        losses = [loss for _, loss in found]
        last = losses[-max(1, len(losses) // 10) :]
        shown = [f"{len(losses):,}", figure(losses[0]), figure(losses[-1]), figure(statistics.fmean(last))]
        rows.append([Cell(name), *map(Cell, shown)])
    head = ["source", "steps with it", "first", "last", "mean of the last tenth"]
    return [Section("Training loss by source", [Table(head, rows)])] if rows else []


def samples(records: Sequence[dict[str, Any]], *, every: bool = False) -> list[Section]:
    """The answers of the first and the best evaluation, or of `every` one, each below a line that says which."""
    evals = of_kind(records, "eval")
    sampled, best = [record for record in evals if record.get("samples")], best_of(evals)
    if not sampled:
        return []
    if not every:
        end = next((record for record in sampled[1:] if record is best), sampled[-1])
        sampled = [sampled[0], end] if end is not sampled[0] else [end]
    blocks = [block for record in sampled for block in _samples(record, " (best)" if record is best else "")]
    return [Section("Samples", blocks)]


def _samples(record: Mapping[str, Any], remark: str) -> list[Block]:
    columns = ["prompt", "expected", "answer"]
    rows = [[_sample(sample.get(column)) for column in columns] for sample in record["samples"]]
    return [Words(f"At step {record['step']:,}, loss {scores(record)[0]}{remark}:"), Table(columns, rows)]


def scores(record: Mapping[str, Any]) -> list[str]:
    """Loss and perplexity of an evaluation."""
    loss, perplexity = record.get("loss"), record.get("perplexity")
    return [
        "not finite" if loss is None else decimals(loss, 4),
        "–" if perplexity is None else decimals(perplexity, 2),
    ]


def figure(value: float | None) -> str:
    """A figure of an objective; a dash where it is not known or not finite."""
    return "–" if value is None else decimals(value, 4)


def _sample(text: str | None) -> Cell:
    if text is None:
        return Cell("–")
    if not text.strip():
        return Cell("", "(empty)")
    if len(text) > SAMPLE_SHOWN:
        return Cell(f"{text[:SAMPLE_SHOWN]} …", f"({len(text):,} characters)")
    return Cell(text)

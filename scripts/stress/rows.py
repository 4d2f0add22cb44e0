"""Mutated data files: every record that is read is used or dropped for a reason, whatever stands in the file."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

from stress.mutate import mutate
from stress.tally import Tally
from stress.workers import run_all

RECIPE = "model: none\ndata: {{train: {file}, cache: false, on_bad_row: {policy}}}\noutput_dir: none\n"
VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, "", " ", "\n", "\x00", "\x1b[2J", "\ud800", "\u2028", "<|im_end|>", "a" * 5_000),
    *([], {}, [[]], [None], [{"role": "user"}], {"content": None}, "‮evil", "🙂", "é" * 300),
)
# "@" becomes the number of the row: equal rows would never be split from each other.
ROWS = (
    {"messages": [{"role": "user", "content": "what is the time?"}, {"role": "assistant", "content": "forty @"}]},
    {
        "messages": [
            {"role": "system", "content": "be short"},
            {"role": "user", "content": "hi @"},
            {"role": "assistant", "content": "hello world"},
            {"role": "user", "content": "and?"},
            {"role": "assistant", "content": "the end"},
        ]
    },
    {"conversations": [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "the answer @"}]},
    {"instruction": "answer", "input": "the question", "output": "forty @"},
    {"prompt": "once upon ", "completion": "a time @"},
    {"text": "hello world, the answer is @"},
)
CHOICES: dict[str, tuple[Any, ...]] = {
    "too_long": ("error", "truncate", "truncate", "drop", "drop", "split"),
    "max_length": (16, 256, 256, 256),
    "train_on": ("assistant", "last-assistant", "all"),
    "validation": ("none", "none", 0.3, 1),
    "shuffle": (True, False),
}


BAD = ("bad JSON", "invalid UTF-8", "not an object", "missing key")


def numbered(row: dict[str, Any], count: int = 6) -> list[Any]:
    return [json.loads(json.dumps(row).replace("@", str(n))) for n in range(count)]


@cache
def corpus() -> list[tuple[str, bytes]]:
    """Good files of every kind: (suffix, content)."""
    found = []
    for row in ROWS:
        rows = numbered(row)
        found.append((".jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode()))
        found.append((".json", json.dumps(rows).encode()))
        if all(isinstance(value, str) for value in row.values()):
            table = io.StringIO()
            writer = csv.DictWriter(table, row)
            writer.writeheader()
            writer.writerows(rows)
            found.append((".csv", table.getvalue().encode()))
    return [*found, (".txt", b"Hello world.\r\n\r\nThe answer is forty two.\n")]


def replace_value(rng: random.Random) -> tuple[str, bytes]:
    """A file of rows in which some field, at any depth, has another value, name or type."""
    rows = numbered(rng.choice(ROWS))
    if rng.random() < 0.1:
        rows[0] = rng.choice(ROWS)
    for _ in range(rng.randint(1, 3)):
        _disturb(rows, rng)
    text = "".join(json.dumps(row, ensure_ascii=rng.random() < 0.9) + "\n" for row in rows)
    whole = json.dumps({"data": rows} if rng.random() < 0.3 else rows)
    suffix = rng.choice((".jsonl", ".jsonl", ".json"))
    return suffix, (text if suffix == ".jsonl" else whole).encode("utf-8", "surrogatepass")


def _disturb(value: Any, rng: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        inner = value[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.8:
            value = inner
            continue
        change = rng.random()
        if change < 0.7:
            value[key] = rng.choice(VALUES)
        elif change < 0.85 and isinstance(value, dict):
            value[rng.choice(("role", "content", "text", "", "from", "\x1b"))] = value.pop(key)
        else:
            del value[key]
        return


def generate(n: int, seed: int) -> tuple[str, bytes, dict[str, Any]]:
    """Data file n: suffix, content, and the settings of the data section: always the same ones."""
    rng = random.Random(f"{seed} data {n}")
    if rng.random() < 0.4:
        suffix, content = replace_value(rng)
    else:
        suffix, content = rng.choice(corpus())
        content = mutate(content, [text for _, text in corpus()], rng)
    return suffix, content, {key: rng.choice(values) for key, values in CHOICES.items()}


def judge(path: Path, policy: str, settings: dict[str, Any], tokenizer: Any) -> str:
    """Prepare one file. Raises ValueError for counts that do not add up."""
    from lrft import data, recipe
    from lrft.errors import DataError, RecipeError

    source = path.with_name("recipe.yaml")
    source.write_text(RECIPE.format(file=path, policy=policy))
    loaded = recipe.load(source, [f"data.{key}={json.dumps(value)}" for key, value in settings.items()])
    try:
        prepared = data.prepare(loaded.data, tokenizer, seed=0, limit=256, where=loaded.where, cache=path.parent)
    except (DataError, RecipeError):
        return f"{policy}: refused"
    report = prepared.report
    for name, part in [("all", report), *((source.path, source) for source in report.sources)]:
        if part.read != part.used + sum(part.dropped.values()):
            raise ValueError(f"{name}: {part.read} read, {part.used} used, {part.dropped}")
    if policy == "error" and any(report.dropped.get(reason) for reason in BAD):
        raise ValueError(f"bad rows were dropped although they are errors: {report.dropped}")
    rows = len(prepared.train) + (len(prepared.validation) if prepared.validation is not None else 0)
    if rows != report.train_rows + report.validation_rows or rows < report.used:
        raise ValueError(f"{report.used} used, {rows} rows")
    if any(not part.trained(i).any() for part in (prepared.train, prepared.validation or []) for i in range(len(part))):
        raise ValueError("a row without a trained token")
    return f"{policy}: used{' with drops' if sum(report.dropped.values()) else ''}"


def campaign(tally: Tally, own: Path, count: int, seed: int) -> None:
    import tiny_tokenizers

    import lrft  # noqa: F401

    tokenizers = (tiny_tokenizers.chatml(), tiny_tokenizers.spaced())
    os.chdir(own)

    def case(n: int) -> str:
        suffix, content, settings = generate(n // 2, seed)
        path = own / f"rows{suffix}"
        path.write_bytes(content)
        return judge(path, ("skip", "error")[n % 2], settings, tokenizers[n // 2 % 2])

    with tally.figure("mutated data files, skip and error") as figure:
        run_all(tally, figure, case, 2 * count, own)

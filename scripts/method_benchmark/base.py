"""The base of the benchmark: a tokenizer of whole words, and a Llama that has read the small English."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from common.small_model import END, START, lrft, write_llama, write_rows

from method_benchmark import language
from method_benchmark.tasks import TASKS, mislabelled, rows

FOLDER = Path("runs/benchmark")
RECIPE = Path("recipes/benchmark/base.yaml")
UNKNOWN = "<unknown>"
RANDOM, TRAINED, BASE = FOLDER / "random", FOLDER / "base-run", FOLDER / "base"
LINES, HELD_OUT = 12_000, 256
"""of the small English: read by the base, kept from it"""
TRAIN, VALIDATION = 512, 256
"""rows of a task"""
WRONG = 0.3
"""share of wrong labels in classification-noisy.jsonl, which docs/claims.md trains on"""


def english() -> list[dict[str, str]]:
    """LINES + HELD_OUT different lines."""
    draw = Random("english")
    seen: dict[str, None] = {}
    while len(seen) < LINES + HELD_OUT:
        seen[language.read(draw)] = None
    return [{"text": text} for text in seen]


def write_data() -> None:
    lines = english()
    write_rows(FOLDER / "english.jsonl", lines[:LINES])
    write_rows(FOLDER / "english-held-out.jsonl", lines[LINES:])
    for task in TASKS:
        validation = rows(task, VALIDATION, seed=2)
        train = rows(task, TRAIN, seed=1, unlike={row["prompt"] for row in validation})
        write_rows(FOLDER / f"{task}-validation.jsonl", validation)
        write_rows(FOLDER / f"{task}.jsonl", train)
        if task == "classification":
            write_rows(FOLDER / f"{task}-noisy.jsonl", mislabelled(train, WRONG, seed=1))


def words() -> list[str]:
    """Every word of the data, in the order of letters."""
    texts = (
        text
        for path in sorted(FOLDER.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").splitlines()
        for text in json.loads(line).values()
    )
    return sorted({word for text in texts for word in text.split()})


def write_random() -> None:
    """A Llama of three blocks with random weights, and a tokenizer of the words of the data."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    numbers = {word: number for number, word in enumerate([START, END, UNKNOWN, *words()])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    write_llama(RANDOM, tokenizer, blocks=3, inner=512, unk_token=UNKNOWN)


def make() -> None:
    """The data; and the base, if it is not there: random weights, trained by `lrft train`, written by `lrft merge`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_data()
    if BASE.exists():
        return
    print(f"training {BASE}, some minutes", flush=True)
    write_random()
    lrft("train", str(RECIPE), "--fresh")
    lrft("merge", str(TRAINED), "-o", str(BASE))

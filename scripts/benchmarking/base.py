"""The base of the benchmark: a tokenizer of whole words, and a Llama that has read the small English."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from random import Random

from benchmarking import language
from benchmarking.tasks import TASKS, mislabelled, rows
from lrft import files

FOLDER = Path("runs/benchmark")
RECIPE = Path("recipes/benchmark/base.yaml")
RANDOM, TRAINED, BASE = FOLDER / "random", FOLDER / "base-run", FOLDER / "base"
LINES, HELD_OUT = 12_000, 256
"""of the small English: read by the base, kept from it"""
TRAIN, VALIDATION = 512, 256
"""rows of a task"""
WRONG = 0.3
"""share of wrong labels in classification-noisy.jsonl, which docs/claims.md trains on"""


def write_rows(path: Path, made: Iterable[Mapping[str, str]]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in made))


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
    """A Llama of three blocks and width 256 with random weights, and a tokenizer of the words of the data."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    numbers = {word: number for number, word in enumerate(["<s>", "</s>", "<unknown>", *words()])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unknown>"
    ).save_pretrained(RANDOM)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(numbers),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=numbers["<s>"],
        eos_token_id=numbers["</s>"],
        pad_token_id=numbers["</s>"],
    )
    LlamaForCausalLM(config).save_pretrained(RANDOM)


def lrft(*arguments: str) -> None:
    """Raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "lrft", *arguments], check=True)


def make() -> None:
    """The data; and the base, if it is not there: random weights, trained by `lrft train`, written by `lrft merge`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_data()
    if BASE.exists():
        return
    write_random()
    lrft("train", str(RECIPE), "--fresh")
    lrft("merge", str(TRAINED), "-o", str(BASE))

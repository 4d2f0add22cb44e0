"""Random pairs to memorise, a tokenizer of byte pairs, and a base that has memorised other pairs.

A pair is two random version-4 UUIDs without hyphens: 32 hex digits each, 16 tokens. The prompt is the key and a colon,
the answer the value.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import Iterator
from pathlib import Path

from common.small_model import END, START, lrft, write_llama, write_rows

FOLDER = Path("runs/claims/pairs")
RECIPE = Path("recipes/claims/base.yaml")
RANDOM, TRAINED, BASE = FOLDER / "random", FOLDER / "base-run", FOLDER / "base"
OLD, NEW = 128, 256
"""pairs that the base learns, pairs that a comparison learns"""


def pairs(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Rows of `count` random pairs."""
    digits = random.Random(seed)

    def draw() -> str:
        return uuid.UUID(int=digits.getrandbits(128), version=4).hex

    for _ in range(count):
        yield {"prompt": draw() + ":", "completion": draw()}


def write_random(folder: Path) -> None:
    """A Llama of two blocks with random weights, and a tokenizer of 259 tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = [f"{byte:02x}" for byte in range(256)] + [START, END, ":"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=START))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[0-9a-f]{2}|:"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    write_llama(folder, tokenizer, blocks=2, inner=704)


def make() -> None:
    """The data; and the base, if it is not there: random weights, trained by `lrft train`, written by `lrft merge`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_rows(FOLDER / "old.jsonl", pairs(OLD, seed=1))
    write_rows(FOLDER / "new.jsonl", pairs(NEW, seed=2))
    if BASE.exists():
        return
    print(f"training {BASE}, some minutes", flush=True)
    write_random(RANDOM)
    lrft("train", str(RECIPE), "--fresh", "--quiet")
    lrft("merge", str(TRAINED), "-o", str(BASE))

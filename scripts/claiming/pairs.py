"""Random pairs to memorise, a tokenizer of byte pairs, and a base that has memorised other pairs.

A pair is two random version-4 UUIDs without hyphens: 32 hex digits each, 16 tokens. The prompt is the key and a colon,
the answer the value.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from lrft import files

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


def write_rows(path: Path, rows: Iterator[dict[str, str]]) -> None:
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_random(folder: Path) -> None:
    """A Llama of two blocks and width 256 with random weights, and a tokenizer of 259 tokens."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [f"{byte:02x}" for byte in range(256)] + ["<s>", "</s>", ":"]
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[0-9a-f]{2}|:"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=numbers["<s>"],
        eos_token_id=numbers["</s>"],
        pad_token_id=numbers["</s>"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def lrft(*arguments: str) -> str:
    """What a command prints. Raises CalledProcessError when it fails."""
    return subprocess.run(
        [sys.executable, "-m", "lrft", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def make() -> None:
    """The data; and the base, if it is not there: random weights, trained by `lrft train`, written by `lrft merge`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_rows(FOLDER / "old.jsonl", pairs(OLD, seed=1))
    write_rows(FOLDER / "new.jsonl", pairs(NEW, seed=2))
    if BASE.exists():
        return
    write_random(RANDOM)
    lrft("train", str(RECIPE), "--fresh", "--quiet")
    lrft("merge", str(TRAINED), "-o", str(BASE))

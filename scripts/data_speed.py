"""Rows a second and peak memory of preparing data, beside `datasets.map` with the same tokenizer.

    python scripts/data_speed.py 50000 200000 1000000

Rows are made on the spot: a question and an answer of invented words, about 200 tokens as a byte-level BPE of 8,000
tokens trained on such rows cuts them, written by a ChatML template. lrft reads the file, renders, tokenises, masks,
checks that the ids read as the text, splits and writes its cache; `datasets` loads the file and maps
`apply_chat_template` and the tokenizer over batches of 1,000, by threads of the tokenizer or by 2 processes. It makes
ids alone: no mask, no check and no split. Memory is what is not mapped from files, of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WORDS = 20_000
WAYS = ("lrft", "datasets", "datasets-2")


def words(rng: random.Random) -> list[str]:
    parts = [a + b for a in "bcdfghklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "ing")]
    return ["".join(rng.choices(parts, k=rng.choice((1, 2, 2, 3)))) for _ in range(WORDS)]


def write_rows(path: Path, n: int) -> None:
    """n conversations of about 200 tokens; how often a word comes falls with its rank, as in languages."""
    rng = random.Random(0)
    bank, odds = words(rng), list(accumulate(1 / (rank + 5) for rank in range(WORDS)))

    def text(size: int) -> str:
        found = rng.choices(bank, cum_weights=odds, k=size)
        found[::12] = [word.capitalize() + "," for word in found[::12]]
        return " ".join(found) + "."

    with path.open("w") as file:
        for _ in range(n):
            turns = {"user": text(rng.randint(10, 60)), "assistant": text(rng.randint(30, 150))}
            file.write(json.dumps({"messages": [{"role": r, "content": t} for r, t in turns.items()]}) + "\n")


def make_tokenizer(rows: Path, folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=special,
        show_progress=False,
    )
    with rows.open() as file:
        texts = [turn["content"] for line in islice(file, 3000) for turn in json.loads(line)["messages"]]
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=TEMPLATE)
    made.save_pretrained(folder)


def with_lrft(tokenizer: Any, path: Path, work: Path) -> int:
    from lrft import data
    from lrft.recipe import DataEntry, DataSection

    section = DataSection(train=(DataEntry(path=str(path)),), validation=0.02)
    made = data.prepare(section, tokenizer, seed=0, limit=None, where=lambda key: "default", cache=work / "cache")
    return made.report.tokens + made.report.validation_tokens


def with_datasets(tokenizer: Any, path: Path, work: Path, processes: int) -> int:
    import datasets

    datasets.disable_progress_bars()

    def tokenize(batch: dict[str, Any]) -> dict[str, Any]:
        texts = tokenizer.apply_chat_template(batch["messages"], tokenize=False)
        return {"input_ids": tokenizer(texts, add_special_tokens=False)["input_ids"]}

    rows = datasets.load_dataset("json", data_files=str(path), cache_dir=str(work / "hf"), split="train")
    many = None if processes == 1 else processes
    made = rows.map(tokenize, batched=True, num_proc=many, remove_columns=rows.column_names)
    return sum(len(ids) for batch in made.with_format("arrow").iter(10_000) for ids in batch["input_ids"])


def child(way: str, tokenizer: Path, path: Path) -> None:
    """One measurement, in a process of its own: prints the seconds and the tokens."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        start = time.perf_counter()
        before = os.times()
        tokens = (
            with_lrft(loaded, path, Path(work))
            if way == "lrft"
            else with_datasets(loaded, path, Path(work), 2 if way == "datasets-2" else 1)
        )
        spent = [after - first for first, after in zip(before[:4], os.times()[:4], strict=True)]
        print(json.dumps({"seconds": time.perf_counter() - start, "cpu": sum(spent), "tokens": tokens}))


def anonymous(pid: int) -> int:
    """Bytes of a process and its children that are not mapped from files."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    own = [int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("RssAnon")]
    return sum(own) + sum(anonymous(int(found)) for found in children)


def measure(way: str, tokenizer: Path, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", way, str(tokenizer), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        most = 0
        while process.poll() is None:
            most = max(most, anonymous(process.pid))
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"{way} ended with {process.returncode}")
        assert process.stdout is not None
        return {**json.loads(process.stdout.read().splitlines()[-1]), "peak": most}


def machine() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown")
    versions = ", ".join(f"{package} {version(package)}" for package in ("tokenizers", "transformers", "datasets"))
    return f"{name}, {len(os.sched_getaffinity(0))} cores; Python {sys.version.split()[0]}, {versions}; seed 0"


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=int, nargs="*", default=[50_000, 200_000, 1_000_000])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folder", help="for rows and caches, removed at the end; 6 GB for a million rows")
    asked = parser.parse_args()
    print(machine())
    print("| rows | way | tokens a row | rows a second | CPU seconds | peak memory |\n|---|---|---|---|---|---|")
    for n in asked.rows:
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            path, tokenizer = Path(folder, "rows.jsonl"), Path(folder, "tokenizer")
            write_rows(path, n)
            make_tokenizer(path, tokenizer)
            for way in asked.ways:
                found = measure(way, tokenizer, path)
                print(
                    f"| {n:,} | {way} | {found['tokens'] / n:.0f} | {n / found['seconds']:,.0f} | {found['cpu']:.1f} "
                    f"| {found['peak'] / 1e6:,.0f} MB |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

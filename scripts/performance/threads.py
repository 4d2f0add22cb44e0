"""How threads should wait: python -m performance.threads [ROUNDS] [MODEL]

A short training run with each setting, one after the other in each round, on the machine as it is and beside two
processes that keep two cores busy. Printed are medians of the wall seconds of the whole run.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lrft.utils import threads

SETTINGS: dict[str, dict[str, str]] = {
    "as torch has it": {"GOMP_SPINCOUNT": ""},
    "lrft's choice": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "spin 3,000": {"GOMP_SPINCOUNT": "3000"},
    "spin 30,000": {"GOMP_SPINCOUNT": "30000"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
RECIPE = """\
model: {model}
data: {{train: {rows}, validation: none}}
training: {{max_steps: 20, global_batch_size: 4, warmup_steps: 0, precision: fp32}}
evaluation: {{every: none}}
checkpoint: {{every: none}}
output_dir: {out}
"""


def tiny(folder: Path) -> Path:
    """A random Llama of two blocks and width 64, with the tokenizer of the tests' size made on the spot."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(97 + i): i for i in range(26)} | {" ": 26, "<eos>": 27, "<unk>": 28}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=29, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=27, eos_token_id=27,
        )
    ).save_pretrained(folder)  # fmt: skip
    AutoTokenizer.from_pretrained(folder)
    return folder


@contextmanager
def company(processes: int) -> Iterator[None]:
    """Processes that compute without end beside what is measured."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def seconds(recipe: Path, out: Path, setting: dict[str, str]) -> float:
    environment = {k: v for k, v in os.environ.items() if k not in threads.CHOSEN}
    environment |= {name: value for name, value in setting.items() if value}
    if "GOMP_SPINCOUNT" in setting and not setting["GOMP_SPINCOUNT"]:
        environment["KMP_BLOCKTIME"] = "200"  # libgomp does not read it: lrft takes it for the user's choice
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "lrft", "train", str(recipe), "--fresh", "--quiet", f"output_dir={out}"],
        env=environment,
        check=True,
    )
    return time.monotonic() - began


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory(prefix="lrft-threads-") as name:
        folder = Path(name)
        model = Path(sys.argv[2]) if len(sys.argv) > 2 else tiny(folder / "model")
        rows = folder / "rows.jsonl"
        rows.write_text('{"text": "the quick brown fox jumps over the lazy dog"}\n' * 40)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(model=model, rows=rows, out=folder / "out"))
        for title, processes in (("as it is", 0), ("beside two busy processes", 2)):
            with company(processes):
                found: dict[str, list[float]] = {setting: [] for setting in SETTINGS}
                for _ in range(rounds):
                    for setting, environment in SETTINGS.items():
                        found[setting].append(seconds(recipe, folder / "out", environment))
            print(f"{title} (load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, {rounds} rounds)")
            for setting, times in found.items():
                print(f"  {setting:<16} {statistics.median(times):6.1f} s   {min(times):.1f} to {max(times):.1f}")


if __name__ == "__main__":
    main()

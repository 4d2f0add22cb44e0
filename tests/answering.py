"""A tiny base with two adapters that change its answers, made without training."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
import tiny_tokenizers
import torch
from runs import save_base
from transformers import AutoTokenizer

import lrft
from lrft.adapters.storage import load_adapter, save_adapter
from lrft.model.load import load_model
from lrft.model.weights import fingerprint


def make(root: Path, seed: int = 0) -> Path:
    """root/base, and the adapters root/one and root/two of different methods, each with the trained tokenizer."""
    base = save_base(root / "base", seed=seed)
    for number, (name, method) in enumerate({"one": "lora", "two": "mora"}.items(), 1):
        model = load_model(base, dtype=torch.float32)
        handle = lrft.attach(model, {"method": method, "rank": 4}, seed=number)
        tiny.disturb(list(handle.trained().values()), seed=number)
        (root / name).mkdir()
        tiny_tokenizers.chatml().save_pretrained(root / name)
        told = {"name": str(base), "revision": None, "fingerprint": fingerprint(base), "dtype": "float32"}
        save_adapter(handle, root / name, base=told, beside=["tokenizer.json"])
    return root


def stock(root: Path, adapter: str | None, turns: list[dict[str, str]], most: int = 8) -> str:
    """Greedy answer of plain transformers to the conversation as its own template writes it."""
    model = load_model(root / "base", dtype=torch.float32).eval()
    if adapter:
        load_adapter(model, root / adapter)
    tokenizer = AutoTokenizer.from_pretrained(root / (adapter or "base"))
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**asked, max_new_tokens=most, do_sample=False, pad_token_id=0)
    return tokenizer.decode(made[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def turns(*texts: str) -> list[dict[str, str]]:
    """A conversation that a user begins."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def lines(path: Path) -> list[dict]:
    """The rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]

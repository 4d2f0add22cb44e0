"""Answers of two models to the same held-out commands, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from lrft.model.hub import find_model
from lrft.model.load import load_model, load_tokenizer

MAX_NEW_TOKENS = 60


def answers(folder: Path, prompts: list[list[dict[str, str]]]) -> list[str]:
    """Greedy answers, with nothing but transformers: what any other program would get from this folder."""
    tokenizer: Any = load_tokenizer(folder)
    model: Any = load_model(folder, dtype=torch.float32)
    found = []
    for prompt in prompts:
        tokens = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**tokens, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        found.append(tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True))
    return found


def one_line(answer: str, limit: int = 110) -> str:
    flat = " ".join(answer.split())
    return flat if len(flat) <= limit else f"{flat[:limit]} ..."


def side_by_side(base: str, merged: str, test: Path, rows: int = 6) -> Table:
    """Answers of both to the first `rows` commands of a file; right ones of `merged` are green. Raises LrftError."""
    chats = [json.loads(line)["messages"] for line in test.read_text("utf-8").splitlines()[:rows]]
    prompts = [chat[:-1] for chat in chats]
    before = answers(find_model(base, where="BASE"), prompts)
    after = answers(find_model(merged, where="MERGED"), prompts)
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("command", 3), ("before", 4), ("after", 4)):
        table.add_column(title, ratio=ratio)
    for chat, old, new in zip(chats, before, after, strict=True):
        right = new.strip() == chat[-1]["content"]
        marked = Text(one_line(new), style="green" if right else "red")
        table.add_row(Text(chat[-2]["content"]), Text(one_line(old)), marked)
    return table

"""Prints the answers of two models to the same held-out prompts, side by side.

python -m lrft.quickstart.answers BASE MERGED TEST.jsonl [--rows 6]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrft.errors import LrftError, exit_code
from lrft.model.hub import find_model
from lrft.model.load import load_model, load_tokenizer

MAX_NEW_TOKENS = 60


def answers(folder: Path, prompts: Sequence[list[dict[str, str]]]) -> list[str]:
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


def asked(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    """The prompt of a row, and the answer that is wanted: of a conversation its last turn, of a pair the chosen one."""
    if "messages" in row:
        *prompt, answer = row["messages"]
        return prompt, answer["content"]
    return row["prompt"], row["chosen"]


def one_line(answer: str, limit: int = 110) -> str:
    flat = " ".join(answer.split())
    return flat if len(flat) <= limit else f"{flat[:limit]} ..."


def side_by_side(base: str, merged: str, test: Path, rows: int = 6) -> Table:
    """Answers of both to the first `rows` prompts of a file; right ones of `merged` are green. Raises LrftError."""
    lines = test.read_text("utf-8").splitlines()[:rows]
    prompts, wanted = zip(*(asked(json.loads(line)) for line in lines), strict=True)
    before = answers(find_model(base, where="BASE"), prompts)
    after = answers(find_model(merged, where="MERGED"), prompts)
    table = Table(show_lines=True, expand=True)
    for title, ratio in (("prompt", 3), ("before", 4), ("after", 4)):
        table.add_column(title, ratio=ratio)
    for prompt, answer, old, new in zip(prompts, wanted, before, after, strict=True):
        right = new.strip() == answer
        marked = Text(one_line(new), style="green" if right else "red")
        table.add_row(Text(prompt[-1]["content"]), Text(one_line(old)), marked)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description="Answers of two models to the same held-out prompts.")
    parser.add_argument("base")
    parser.add_argument("merged")
    parser.add_argument("test", type=Path)
    parser.add_argument("--rows", type=int, default=6)
    args = parser.parse_args()
    try:
        Console().print(side_by_side(args.base, args.merged, args.test, args.rows))
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())

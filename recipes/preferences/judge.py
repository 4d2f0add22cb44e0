"""Prints how often two models find the better answer of a held-out pair likelier than the worse one.

    python recipes/preferences/judge.py BASE MERGED TEST.jsonl

With nothing but transformers: the mean of the log-probabilities of an answer's tokens, its end token included.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from lrft.errors import LrftError, exit_code
from lrft.model.hub import find_model
from lrft.model.load import load_model, load_tokenizer

SIDES = ("chosen", "rejected")


@torch.no_grad()
def likelihood(model: Any, tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> float:
    """Mean log-probability of the answer's tokens."""
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    whole = tokenizer(asked + answer + tokenizer.eos_token, return_tensors="pt", add_special_tokens=False).input_ids
    start = len(tokenizer(asked, add_special_tokens=False).input_ids)
    logs = model(input_ids=whole).logits[0, start - 1 : -1].log_softmax(-1)
    return logs.gather(1, whole[0, start:, None]).mean().item()


def share_right(folder: Path, pairs: list[dict[str, Any]]) -> float:
    """The share of pairs whose better answer is the likelier one."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, dtype=torch.float32)
    found = [[likelihood(model, tokenizer, pair["prompt"], pair[side]) for side in SIDES] for pair in pairs]
    return sum(chosen > rejected for chosen, rejected in found) / len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description="How often two models find the better answer likelier.")
    parser.add_argument("base")
    parser.add_argument("merged")
    parser.add_argument("test", type=Path)
    args = parser.parse_args()

    pairs = [json.loads(line) for line in args.test.read_text("utf-8").splitlines()]
    try:
        before = share_right(find_model(args.base, where="BASE"), pairs)
        after = share_right(find_model(args.merged, where="MERGED"), pairs)
    except LrftError as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return exit_code(error)
    print(f"The better answer of {len(pairs)} held-out pairs is the likelier one: before {before:.0%}, now {after:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

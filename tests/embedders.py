"""Rows of pairs that tiny bases can learn, and places whose recipes train embeddings of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import classifiers
import runs

WORDS = {"hello": "world", "time": "what", "forty": "two", "world": "hello", "what": "time", "two": "forty"}


def rows(n: int, seed: int = 0, negatives: int = 0) -> list[dict[str, Any]]:
    """Queries of words, with the words that belong to them as document, and other words as negatives."""
    chosen, seen, made = random.Random(seed), set[tuple[str, ...]](), list[dict[str, Any]]()
    while len(made) < n:
        words = tuple(chosen.choice(list(WORDS)) for _ in range(chosen.randint(2, 7)))
        if words in seen or tuple(WORDS[w] for w in words) == words:
            continue
        seen.add(words)
        row: dict[str, Any] = {"anchor": " ".join(words), "positive": " ".join(WORDS[w] for w in words)}
        others = [" ".join(WORDS[w] for w in words[:-1]) + f" {k}" for k in range(chosen.randint(0, negatives))]
        made.append(row | ({"negatives": others} if others else {}))
    return made


def place(root: Path, name: str = "bert", made: list[dict[str, Any]] | None = None) -> runs.Place:
    """A place whose recipe trains embeddings."""
    classifiers.save_base(root / "base", name)
    runs.write_rows(root / "train.jsonl", rows(24, negatives=2) if made is None else made)
    runs.write_rows(root / "validation.jsonl", rows(9, seed=1) if made is None else made[:6])
    found = runs.Place(root)
    path = found.write_recipe()
    path.write_text(path.read_text().replace("training:\n", "training:\n  objective: embedding\n"))
    return found

"""Rows of instruction lengths: many short, a few long, answers longer than questions. Standard library alone.

Lengths are the quantiles of a log-normal distribution, so that few rows have its shape as well; its width is the one
at which padding to the longest row wastes the wanted share. Token ids are drawn from a bank of phrases, so that there
is something to learn. Every step has rows of the same lengths.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

FIRST_WORD = 3  # ids below are the unknown, the start and the end token
END = 2
PHRASES = 400
PAIRS = ".pairs.jsonl"


@dataclass(frozen=True)
class Row:
    """Token ids; those from `answer` on are labelled."""

    tokens: list[int]
    answer: int

    @property
    def labels(self) -> list[int]:
        """As transformers want them: -100 where a token is not labelled."""
        return [-100] * self.answer + self.tokens[self.answer :]

    @property
    def labelled(self) -> int:
        return len(self.tokens) - self.answer


@dataclass(frozen=True)
class Batch:
    """The rows of one optimiser step, with what every contestant must have seen of them."""

    rows: list[Row]

    @property
    def tokens(self) -> int:
        return sum(len(row.tokens) for row in self.rows)

    @property
    def labelled(self) -> int:
        return sum(row.labelled for row in self.rows)

    @property
    def checksum(self) -> int:
        """Sum of the labelled ids."""
        return sum(sum(row.tokens[row.answer :]) for row in self.rows)

    @property
    def longest(self) -> int:
        return max(len(row.tokens) for row in self.rows)

    @property
    def padding(self) -> float:
        """Share of a batch padded to its longest row that is padding."""
        return 1 - self.tokens / (len(self.rows) * self.longest)


@dataclass(frozen=True)
class Shape:
    """What the rows of a step are like."""

    rows: int = 16
    tokens: int = 3071
    padding: float = 0.54
    labelled: float = 0.63

    def facts(self) -> dict[str, float]:
        return asdict(self)


def lengths(shape: Shape) -> list[int]:
    """Lengths in ascending order: `shape.rows` of them, together `shape.tokens`, the longest as the padding says."""
    n, total = shape.rows, shape.tokens
    longest = round(total / (n * (1 - shape.padding)))
    normal = [NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)]

    def scaled(width: float) -> list[float]:
        return [longest * math.exp(width * (z - normal[-1])) for z in normal]

    low, high = 0.0, 20.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(scaled(middle)) > total else (low, middle)
    found = [max(2, math.floor(length)) for length in scaled(low)]
    found[-1] = longest
    return _with_sum(found, total, least=[2] * (n - 1) + [longest], most=[longest] * n)


def answers(sizes: Sequence[int], share: float, rng: random.Random) -> list[int]:
    """How many tokens of each row are labelled: shares around `share`, together exactly that of all tokens."""
    wanted = [min(size - 1, max(1, round(size * share * rng.uniform(0.7, 1.3)))) for size in sizes]
    return _with_sum(wanted, round(sum(sizes) * share), least=[1] * len(sizes), most=[size - 1 for size in sizes])


def batch(shape: Shape, rng: random.Random, bank: Sequence[Sequence[int]]) -> Batch:
    """The rows of one step, in random order."""
    sizes = lengths(shape)
    rng.shuffle(sizes)
    labelled = answers(sizes, shape.labelled, rng)
    return Batch([Row(_text(size, rng, bank), size - count) for size, count in zip(sizes, labelled, strict=True)])


def in_pairs(batch: Batch) -> Batch:
    """The same rows, but for the second of each two having the prompt of the first: two answers to one prompt."""
    first, second = batch.rows[::2], batch.rows[1::2]
    others = [Row([*a.tokens[: a.answer], *b.tokens[b.answer :]], a.answer) for a, b in zip(first, second, strict=True)]
    return Batch([row for pair in zip(first, others, strict=True) for row in pair])


def batches(shape: Shape, *, vocabulary: int, steps: int = 1, seed: int = 0) -> list[Batch]:
    """The rows of `steps` steps over ids below `vocabulary`."""
    rng = random.Random(f"rows {seed}")
    bank = [[_word(vocabulary, rng) for _ in range(rng.randint(3, 12))] for _ in range(PHRASES)]
    return [batch(shape, rng, bank) for _ in range(steps)]


def save(made: Sequence[Batch], path: Path) -> Path:
    """For the contestants, as JSON; beside it the same rows as text for lrft, which tokenises them itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([[asdict(row) for row in step.rows] for step in made]))
    path.with_suffix(".jsonl").write_text("".join(json.dumps(as_text(r)) + "\n" for step in made for r in step.rows))
    return path


def save_pairs(made: Sequence[Batch], path: Path) -> Path:
    """`save`, and each two rows as one of text, the first being the better answer: PATH's name with PAIRS."""
    rows = [row for step in made for row in step.rows]
    lines = [json.dumps(as_pair(a, b)) + "\n" for a, b in zip(rows[::2], rows[1::2], strict=True)]
    save(made, path)
    path.with_suffix(PAIRS).write_text("".join(lines))
    return path


def load(path: Path) -> list[Batch]:
    return [Batch([Row(**row) for row in step]) for step in json.loads(path.read_text())]


def as_text(row: Row) -> dict[str, str]:
    """The row in the words of the benchmark's tokenizer, id 17 being "t17"; the end token is lrft's to add."""
    prompt, answer = row.tokens[: row.answer], row.tokens[row.answer : -1]
    return {"prompt": _words(prompt), "completion": "".join(f" t{token}" for token in answer)}


def as_pair(chosen: Row, rejected: Row) -> dict[str, str]:
    """Two rows of one prompt in the same words."""
    better, worse = as_text(chosen), as_text(rejected)
    return {"prompt": better["prompt"], "chosen": better["completion"], "rejected": worse["completion"]}


def _words(tokens: Sequence[int]) -> str:
    return " ".join(f"t{token}" for token in tokens)


def _word(vocabulary: int, rng: random.Random) -> int:
    """An id, small ones more often, as in text."""
    return FIRST_WORD + int((vocabulary - FIRST_WORD) * rng.random() ** 3)


def _text(size: int, rng: random.Random, bank: Sequence[Sequence[int]]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < size - 1:
        tokens += bank[int(len(bank) * rng.random() ** 2)]
    return [*tokens[: size - 1], END]


def _with_sum(values: Sequence[int], total: int, *, least: Sequence[int], most: Sequence[int]) -> list[int]:
    """`values` changed by ones, round and round, until their sum is `total`; each stays within its own bounds."""
    found = list(values)
    while (left := total - sum(found)) != 0:
        step = 1 if left > 0 else -1
        bound = most if step > 0 else least
        free = [i for i, value in enumerate(found) if value != bound[i]]
        if not free:
            raise ValueError(f"{len(found)} rows cannot hold {total} tokens of this shape")
        for i in free[: abs(left)]:
            found[i] += step
    return found

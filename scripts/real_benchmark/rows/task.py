"""What a task is: its sets of rows, and the figure that its answers are judged by."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

Row = dict[str, str]
"""prompt and completion"""
Draw = Callable[[Random], Row]
TRAIN, VALIDATION, TEST = 480, 64, 64
"""rows of the three sets"""


@dataclass(frozen=True)
class Sets:
    """Rows of a task.

    train, validation   what learning rates are searched with
    final_train         what the final runs train on
    test                what the final figures are of; no search ever looks at it
    """

    train: list[Row]
    validation: list[Row]
    final_train: list[Row]
    test: list[Row]


@dataclass(frozen=True)
class Task:
    """name: of its files. figure: what `score` returns, between 0 and 1, for (prompt, wanted, answer) of all test rows.

    most: tokens of an answer. tokens: of a row in the mean, by which a run's time is forecast.
    """

    name: str
    says: str
    figure: str
    sets: Callable[[], Sets]
    score: Callable[[Sequence[tuple[str, str, str]]], float]
    most: int
    tokens: float


def different(draw_row: Draw, count: int, seed: str, unlike: Sequence[Row] = ()) -> list[Row]:
    """`count` rows with different prompts, none of them a prompt of `unlike`."""
    draw, seen, made = Random(seed), {row["prompt"] for row in unlike}, list[Row]()
    while len(made) < count:
        row = draw_row(draw)
        if row["prompt"] not in seen:
            seen.add(row["prompt"])
            made.append(row)
    return made


def split(task: str, train: Draw, validation: Draw, test: Draw) -> Sets:
    """Sets without a common prompt: `test` is drawn first."""
    tested = different(test, TEST, f"{task} test")
    validated = different(validation, VALIDATION, f"{task} validation", tested)
    trained = different(train, TRAIN, f"{task} train", [*tested, *validated])
    return Sets(trained, validated, trained, tested)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def exact(answers: Sequence[tuple[str, str, str]]) -> float:
    """Share of answers that are what is wanted, white space around them aside."""
    return mean([float(wanted.strip() == answer.strip()) for _, wanted, answer in answers])


def last_number(answers: Sequence[tuple[str, str, str]]) -> float:
    """Share of answers whose last whole number is that of what is wanted."""

    def number(text: str) -> Any:
        return (re.findall(r"\d+", text) or [None])[-1]

    return mean([float(number(wanted) == number(answer)) for _, wanted, answer in answers])


def first_word(answers: Sequence[tuple[str, str, str]]) -> float:
    """Share of answers whose first word is what is wanted."""
    return mean([float((answer.split() or [""])[0] == wanted.strip()) for _, wanted, answer in answers])


def digits_right(answers: Sequence[tuple[str, str, str]]) -> float:
    """Share of the characters of what is wanted that stand at their place in the answer."""
    pairs = [(wanted.strip(), answer.strip()) for _, wanted, answer in answers]
    right = sum(a == b for wanted, answer in pairs for a, b in zip(wanted, answer, strict=False))
    return right / sum(len(wanted) for wanted, _ in pairs)

"""Whether an engine answers as the adapter: its greedy answers beside ours, and beside those of the base.

A server may load an adapter and ignore it, without a word (vllm-project/vllm#34186): its answers are then the base's.
Rounding makes the answers of two programs part after some tokens, so that equality would ask for too much: an answer
counts as the adapter's where it agrees longer with the adapter's than with the base's.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrft.data.prompts import Asking
from lrft.data.records import BadRow
from lrft.data.token_mask import encode_prompt
from lrft.errors import CheckFailed, DataError, LrftError
from lrft.runs.probe import probe
from lrft.serving.answerer import Request
from lrft.serving.load import Trained
from lrft.serving.shelf import BASE

QUESTIONS = 8
LETTERS = 200  # of a question
TOKENS = 24
SECONDS = 600.0


@dataclass(frozen=True)
class Question:
    """A prompt, our adapter's answer to it, and the base's."""

    text: str
    chat: bool
    trained: str
    base: str

    @property
    def telling(self) -> bool:
        return self.trained != self.base


@dataclass(frozen=True)
class Verdict:
    """Of the `telling` questions, whose answers differ between adapter and base, how many were answered as the adapter
    does: more as the adapter than as the base."""

    asked: int
    telling: int
    as_trained: int


def questions(trained: Trained, base: Trained, adapter: Path) -> list[Question]:
    """Held-out rows of the adapter's run as questions, with the answers of both."""
    rows = probe(adapter, base.folder)[:QUESTIONS]
    texts = [trained.tokenizer.decode(row, skip_special_tokens=True)[:LETTERS].strip() for row in rows]
    asked = {text: ids for text in dict.fromkeys(texts) if (ids := prompt(trained, text)) is not None}
    requests = [Request(ids, TOKENS) for ids in asked.values()]
    ours, bases = trained.answerer.answer(requests), base.answerer.answer(requests)
    return [
        Question(text, not trained.asking.plain, one.text, other.text)
        for text, one, other in zip(asked, ours, bases, strict=True)
    ]


def prompt(trained: Trained, text: str) -> np.ndarray | None:
    """The ids that a server makes of the text; None for one that cannot be asked."""
    try:
        if trained.asking.plain:
            return Asking(trained.tokenizer, plain=True).text(text)
        return encode_prompt(trained.tokenizer, [{"role": "user", "content": text}], options=trained.options)
    except (BadRow, DataError):
        return None


def ask(address: tuple[str, int], model: str, question: Question, key: str | None) -> str:
    """The engine's greedy answer. Raises LrftError when it gives none."""
    body: dict[str, Any] = {"model": model, "temperature": 0, "max_tokens": TOKENS}
    if question.chat:
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": question.text}]
    else:
        path = "/v1/completions"
        body["prompt"] = question.text
    headers = {"Content-Type": "application/json"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
    connection = http.client.HTTPConnection(*address, timeout=SECONDS)
    try:
        connection.request("POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        said = reply.read().decode("utf-8", "replace")
        choice = json.loads(said)["choices"][0]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
        raise LrftError(f"the engine gave no answer as {model}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    return str(choice["message"]["content"] if question.chat else choice["text"])


def agreement(one: str, other: str) -> int:
    """Letters that both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def judge(answers: Sequence[str], asked: Sequence[Question], name: str) -> Verdict:
    """Raises CheckFailed unless most telling answers are the adapter's."""
    pairs = [(answer.strip(), question) for answer, question in zip(answers, asked, strict=True) if question.telling]
    near = sum(
        agreement(said, question.trained.strip()) > agreement(said, question.base.strip()) for said, question in pairs
    )
    if pairs and 2 * near <= len(pairs):
        ignored = all(said == question.base.strip() for said, question in pairs)
        what = "the base's: the engine ignores the adapter" if ignored else "not the adapter's"
        raise CheckFailed(
            f"{name}: the engine's answers are {what} ({near} of {len(pairs)} questions answered as the adapter does)",
            "lrft serve without --engine serves any adapter; a merged model has none that can be ignored: lrft merge.",
        )
    return Verdict(len(asked), len(pairs), near)


def check(
    address: tuple[str, int], asked: Mapping[str, Sequence[Question]], names: Mapping[str, str], key: str | None
) -> dict[str, Verdict]:
    """Ask the engine all questions under each name, and judge. Raises CheckFailed and LrftError."""
    return {
        name: judge([ask(address, names[name], question, key) for question in mine], mine, name)
        for name, mine in asked.items()
    }


def questions_of(shelf: Mapping[str, Trained], folders: Mapping[str, Path]) -> dict[str, list[Question]]:
    """For each adapter of a shelf. folders: theirs."""
    return {name: questions(shelf[name], shelf[BASE], folder) for name, folder in folders.items()}

"""Which of two answers a judge prefers: asked in both orders, its errors kept apart, its answers kept in a file.

Judges prefer an answer for its place as well (Zheng et al. 2023, arXiv 2306.05685, section 3.4): a win is what both
orders agree on.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np

from lrft.judging.endpoint import AskingFailed, Endpoint
from lrft.judging.paired import interval, resamples
from lrft.utils.text import count

Verdict = Literal["first", "second", "tie"]

AT_ONCE = 4
"""requests that wait for the endpoint at the same time"""
MOST_TOKENS = 1024
PROMPT = """\
Two assistants have answered the same request. Decide which answer is better: it does what was asked, is right, and
says no more than is needed. The order of the two and their lengths do not count.

[Request]
{prompt}
[End of request]
{reference}
[Answer A]
{a}
[End of answer A]

[Answer B]
{b}
[End of answer B]

Give your reason in one or two sentences. Then write your decision on a line of its own: [[A]], [[B]], or [[C]] for a
tie.
"""
REFERENCE = """
[Answer that was expected]
{expected}
[End of expected answer]
"""
_DECISION = re.compile(r"\[\[([ABC])\]\]")


def prompt_of(answer: Mapping[str, Any], *, swapped: bool) -> str:
    """What the judge is asked. swapped: the second model's answer comes first."""
    a, b = answer["first"], answer["second"]
    expected = REFERENCE.format(expected=answer["expected"]) if answer["expected"] else ""
    names = {"a": b, "b": a} if swapped else {"a": a, "b": b}
    return PROMPT.format(prompt=answer["prompt"], reference=expected, **names)


def decision(text: str, *, swapped: bool) -> Verdict | None:
    """The last decision in a judge's reply; None when there is none."""
    found = _DECISION.findall(text)
    if not found:
        return None
    if found[-1] == "C":
        return "tie"
    return "first" if (found[-1] == "A") != swapped else "second"


class Kept:
    """Replies by what was asked, in a file of lines: a command that was interrupted goes on. Errors are not kept."""

    def __init__(self, path: Path | None, judge: str) -> None:
        """judge: its address and model, without the key."""
        self.path, self.judge = path, judge
        self._lock = Lock()
        self._replies: dict[str, str] = {}
        for line in path.read_bytes().splitlines() if path is not None and path.is_file() else ():
            try:
                found = json.loads(line)
                self._replies[found["asked"]] = found["reply"]
            except (ValueError, LookupError, TypeError):
                continue  # a line that a kill has torn

    def name(self, prompt: str) -> str:
        return hashlib.sha256(f"{self.judge}\n{prompt}".encode("utf-8", "backslashreplace")).hexdigest()

    def reply(self, prompt: str, endpoint: Endpoint) -> str:
        """What was replied before, or is now, which is kept at once. Raises AskingFailed."""
        name = self.name(prompt)
        known = self._replies.get(name)
        if known is not None:
            return known
        reply = endpoint.ask(prompt, MOST_TOKENS)
        with self._lock:
            self._replies[name] = reply
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"asked": name, "reply": reply}) + "\n")
        return reply


def judge(
    answers: Sequence[Mapping[str, Any]],
    endpoint: Endpoint,
    kept: Kept,
    told: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """For each answer {"verdicts": [in the given order, swapped], "errors": [kinds]}; a verdict is None for an error.

    Answers that are the same are a tie, and not asked. told: of the number of rows that are judged.
    """
    found: list[dict[str, Any]] = [{"verdicts": ["tie", "tie"], "errors": []} for _ in answers]
    asked = [n for n, answer in enumerate(answers) if answer["first"] != answer["second"]]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        made = pool.map(lambda n: both_orders(answers[n], endpoint, kept), asked)
        for done, (n, one) in enumerate(zip(asked, made, strict=True), 1):
            found[n] = one
            told(done)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def both_orders(answer: Mapping[str, Any], endpoint: Endpoint, kept: Kept) -> dict[str, Any]:
    """One row, asked in both orders."""
    verdicts: list[Verdict | None] = []
    errors: list[str] = []
    for swapped in (False, True):
        try:
            verdicts.append(decision(kept.reply(prompt_of(answer, swapped=swapped), endpoint), swapped=swapped))
        except AskingFailed as failed:
            verdicts.append(None)
            errors.append(failed.kind)
            continue
        if verdicts[-1] is None:
            errors.append("no decision in the reply")
    return {"verdicts": verdicts, "errors": errors}


def outcome(one: Mapping[str, Any]) -> str:
    """first, second, tie; `order` where the two orders disagree, `error` where one has no verdict."""
    a, b = one["verdicts"]
    if a is None or b is None:
        return "error"
    return str(a) if a == b else "order"


SCORE = {"first": 1.0, "second": 0.0, "tie": 0.5, "order": 0.5}


def facts_of(judged: Sequence[Mapping[str, Any]], model: str, first: str, second: str) -> dict[str, Any]:
    """Counts, the win rate of the first with its interval, and how often the two orders agree, as JSON values.

    Rows with an error have no part in the rates. A tie, and a row on which the orders disagree, is half a win.
    """
    outcomes = [outcome(one) for one in judged]
    counts = Counter(outcomes)
    scores = [SCORE[one] for one in outcomes if one != "error"]
    errors = Counter(kind for one in judged for kind in one["errors"])
    rate = sum(scores) / len(scores) if scores else None
    low, high = spread(scores)
    whole = {
        "model": model,
        "rows": len(judged),
        "first_wins": counts["first"],
        "second_wins": counts["second"],
        "ties": counts["tie"],
        "orders_disagree": counts["order"],
        "rows_with_errors": counts["error"],
        "errors": dict(errors.most_common()),
        "win_rate": rate,
        "low": low,
        "high": high,
        "agreement": (len(scores) - counts["order"]) / len(scores) if scores else None,
        "preferred_place": place(judged),
    }
    return {**whole, "said": list(said(whole, first, second))}


def spread(scores: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """The 95 % interval of the mean, rows drawn with replacement."""
    if len(scores) < 2:
        return None, None
    values = np.array(scores)
    return interval([mean for counts in resamples(len(scores)) for mean in (counts.numpy() @ values) / len(scores)])


def place(judged: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often the answer in the first and in the second place was preferred where the orders disagree on a winner."""
    pairs = [tuple(one["verdicts"]) for one in judged]
    return {"first": pairs.count(("first", "second")), "second": pairs.count(("second", "first"))}


def said(found: Mapping[str, Any], first: str, second: str) -> Iterator[str]:
    """The same in sentences."""
    if found["win_rate"] is None:
        yield f"{found['model']} gave no verdict in both orders on any row"
    else:
        between = "" if found["low"] is None else f" ({found['low']:.1%} to {found['high']:.1%}, 95 %)"
        yield f"win rate of {first} against {second}: {found['win_rate']:.1%}{between}, by {found['model']}"
        yield (
            f"{found['first_wins']:,} won, {found['second_wins']:,} lost, {found['ties']:,} tied, "
            f"{found['orders_disagree']:,} decided by the order"
        )
        chosen = found["preferred_place"]
        yield (
            f"the two orders agree on {found['agreement']:.1%}; else the first place was preferred "
            f"{chosen['first']:,} times, the second {chosen['second']:,} times"
        )
    if found["rows_with_errors"]:
        kinds = ", ".join(f"{kind} {number:,}" for kind, number in found["errors"].items())
        yield f"{count(found['rows_with_errors'], 'row')} left out for errors of the judge: {kinds}"


WORDS = {
    "first": "prefers {first} in both orders",
    "second": "prefers {second} in both orders",
    "tie": "a tie in both orders",
    "order": "the two orders disagree",
    "error": "no verdict: {errors}",
}


def words(one: Mapping[str, Any], first: str, second: str) -> str:
    """What the page says of one row."""
    return WORDS[outcome(one)].format(first=first, second=second, errors=", ".join(one["errors"]))

"""From a raw record to a conversation, a prompt with its completion, or a document.

messages    {"messages": [{"role": "user" | "assistant" | "system" | "tool", "content": text}, ...]}
sharegpt    {"conversations": [{"from": "human" | "gpt" | "system" | "tool", "value": text}, ...]}
alpaca      {"instruction": text, "input": text (may be missing), "output": text}
completion  {"prompt": text, "completion": text}
text        {"text": text}
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lrft.data.records import BadRow, kind_of
from lrft.errors import nearest

Message = dict[str, str]

REQUIRED: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
}
OPTIONAL: dict[str, tuple[str, ...]] = {"alpaca": ("input",)}
COLUMNS = tuple(dict.fromkeys(c for names in (*REQUIRED.values(), *OPTIONAL.values()) for c in names))
# What other data sets call our columns: only used to suggest a renaming, never to guess one.
ALSO_CALLED: dict[str, tuple[str, ...]] = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "prompt": ("question", "query", "source", "mr", "problem", "user", "context"),
    "completion": ("answer", "response", "target", "ref", "solution", "label", "reply", "assistant"),
    "text": ("content", "document", "story", "body"),
}
ROLES = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}
SHAREGPT_ROLES = {**ROLES, "human": "user", "gpt": "assistant"}

CLASSIC_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
CLASSIC = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Sample:
    """Exactly one of the three is given: `messages`, (`prompt`, `answer`), or `document`."""

    messages: tuple[Message, ...] = ()
    prompt: str = ""
    answer: str = ""
    document: str | None = None

    def digest(self) -> int:
        """First 8 bytes of the sha256 of the content, as an unsigned number."""
        content = [self.messages, self.prompt, self.answer, self.document]
        return int.from_bytes(hashlib.sha256(json.dumps(content).encode()).digest()[:8])


def detect(columns: Iterable[str]) -> str | None:
    """The one format that fits these columns, or None when none or several do."""
    found = set(columns)
    fits = [name for name, wanted in REQUIRED.items() if found.issuperset(wanted)]
    return fits[0] if len(fits) == 1 else None


def unclear(columns: Iterable[str]) -> tuple[str, str]:
    """Why `detect` found nothing, and the next step: (message, hint)."""
    found = list(columns)
    listed = ", ".join(found) or "none"
    fits = [name for name, wanted in REQUIRED.items() if set(found).issuperset(wanted)]
    if fits:
        return f"the columns {listed} fit {' and '.join(fits)}", f"Set format: {fits[0]} (or {fits[1]})."
    if {"chosen", "rejected"} <= set(found):
        return f"the columns {listed} are preference pairs; this version trains on answers only", (
            "To train on the preferred answers: columns: {chosen: completion}"
        )
    close = {name: _renaming(wanted, found) for name, wanted in REQUIRED.items()}
    best = max(close, key=lambda name: len(close[name]) / len(REQUIRED[name]))
    wanted = ", ".join(REQUIRED[best])
    renames = ", ".join(f"{theirs}: {ours}" for ours, theirs in close[best].items() if ours != theirs)
    hint = f"Nearest: {best} ({wanted})."
    if renames:
        hint += f" Rename with columns: {{{renames}}}"
    return f"the columns {listed} fit no format", hint


def renaming(columns: Iterable[str]) -> tuple[str, dict[str, str]] | None:
    """The first format that these columns fit when some are renamed: (format, {their name: our name}), or None."""
    found = list(columns)
    for name, wanted in REQUIRED.items():
        chosen = _renaming(wanted, found)
        if len(chosen) == len(wanted):
            return name, {theirs: ours for ours, theirs in chosen.items() if ours != theirs}
    return None


def _renaming(wanted: Iterable[str], found: list[str]) -> dict[str, str]:
    """{our name: their name} for as many wanted columns as possible."""
    chosen: dict[str, str] = {}
    for ours in wanted:
        free = [c for c in found if c not in chosen.values()]
        known = [c for c in free if c == ours or c.lower() in ALSO_CALLED.get(ours, ())]
        if pick := known or nearest(ours, free):
            chosen[ours] = pick[0]
    return chosen


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's names replaced by ours. Raises BadRow when a named column is missing."""
    for theirs in columns:
        if theirs not in record:
            raise BadRow("missing key", f"no '{theirs}'; there are {', '.join(record) or 'none'}", theirs)
    kept = {name: value for name, value in record.items() if name not in columns}
    return {**kept, **{ours: record[theirs] for theirs, ours in columns.items()}}


def sample(record: Mapping[str, Any], name: str, *, chat: bool) -> Sample:
    """The sample that `record` is under the format `name`. Raises BadRow.

    chat: the tokenizer has a chat template. Alpaca rows become a user turn and an answer with it, and the
    classic alpaca text without it.
    """
    for column in REQUIRED[name]:
        if column not in record:
            raise BadRow("missing key", f"no '{column}'; there are {', '.join(record) or 'none'}", column)
    if name == "messages":
        return Sample(messages=_turns(record["messages"], "messages", "role", "content", ROLES))
    if name == "sharegpt":
        return Sample(messages=_turns(record["conversations"], "conversations", "from", "value", SHAREGPT_ROLES))
    if name == "text":
        return Sample(document=_filled(record["text"], "text"))
    if name == "completion":
        return Sample(prompt=_string(record["prompt"], "prompt"), answer=_answer(record["completion"], "completion"))
    return _alpaca(record, chat)


def _alpaca(record: Mapping[str, Any], chat: bool) -> Sample:
    instruction = _filled(record["instruction"], "instruction")
    extra = record.get("input")
    given = "" if extra is None else _string(extra, "input")
    answer = _answer(record["output"], "output")
    if chat:
        content = f"{instruction}\n\n{given}" if given else instruction
        return Sample(messages=({"role": "user", "content": content}, {"role": "assistant", "content": answer}))
    # Replaced one by one: str.format would read braces in the user's text.
    text = CLASSIC_INPUT if given else CLASSIC
    before, after = text.split("{instruction}")
    return Sample(prompt=before + instruction + after.replace("{input}", given), answer=answer)


def _turns(turns: Any, field: str, who: str, what: str, roles: Mapping[str, str]) -> tuple[Message, ...]:
    if not isinstance(turns, list):
        raise BadRow(_kind(turns), f"must be a list of turns, this is {kind_of(turns)}", field)
    messages = tuple(_turn(turn, f"{field}[{i}]", who, what, roles) for i, turn in enumerate(turns))
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no assistant turn", "no turn is the assistant's: nothing to learn", field)
    if not any(message["role"] == "user" for message in messages[: answers[0]]):
        raise BadRow("answer before a question", "the assistant speaks before any user turn", field)
    return messages


def _turn(turn: Any, field: str, who: str, what: str, roles: Mapping[str, str]) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(_kind(turn), f"must be an object with {who} and {what}, this is {kind_of(turn)}", field)
    for key in (who, what):
        if key not in turn:
            raise BadRow("missing key", f"no '{key}'; there are {', '.join(turn) or 'none'}", field)
    # Tool calls or separate reasoning change what the template writes: not to be passed over.
    if extra := [key for key, value in turn.items() if key not in (who, what) and value not in (None, [], "")]:
        raise BadRow("unknown key in a turn", f"'{extra[0]}' is not supported, only {who} and {what}", field)
    role = turn[who]
    if not isinstance(role, str) or role not in roles:
        raise BadRow("unknown role", f"{role!r}; known are {', '.join(roles)}", f"{field}.{who}")
    place = f"{field}.{what}"
    text = _answer(turn[what], place) if roles[role] == "assistant" else _string(turn[what], place)
    return {"role": roles[role], "content": text}


def _kind(value: Any) -> str:
    return "null" if value is None else "wrong type"


def _string(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise BadRow(_kind(value), f"must be text, this is {kind_of(value)}", field)
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow("lone surrogate", "holds half of a surrogate pair, which is no character", field)
    return value


def _filled(value: Any, field: str) -> str:
    if not _string(value, field).strip():
        raise BadRow("empty", "is empty", field)
    return value


def _answer(value: Any, field: str) -> str:
    if not _string(value, field).strip():
        raise BadRow("empty answer", "is empty", field)
    return value

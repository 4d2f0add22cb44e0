"""From a raw record to a conversation, a prompt with its completion, or a document.

messages    {"messages": [{"role": "user" | "assistant" | "system" | "tool", "content": text}, ...]}
            with tool_calls, tool_call_id and reasoning_content in turns, and a column "tools" (`lrft.data.tools`)
sharegpt    {"conversations": [{"from": "human" | "gpt" | "system" | "tool", "value": text}, ...]}
            the turns of either may be written as the other's; both may have the columns "system" and "tools"
alpaca      {"instruction": text, "input": text (may be missing), "output": text}
            with "system": text and "history": [[question, answer], ...] where rows have them
completion  {"prompt": text, "completion": text}, or both a list of turns
text        {"text": text}
            Each may have a column "weight": what a trained token of the row counts in the loss, 1 where there is none.
preference, kto: `lrft.data.preference`; labelled, scored: `lrft.data.labelled`; tagged: `lrft.data.tagged`; pairs:
`lrft.data.sides`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lrft.data import pictures
from lrft.data.labelled import TEXTS, labelled, scored
from lrft.data.preference import kto, preference
from lrft.data.records import BadRow, kind_of, listed
from lrft.data.report import NO_TOKEN
from lrft.data.sample import NO_TEMPLATE, Sample, is_filled, system_turn, with_system
from lrft.data.sides import NEGATIVES, SIDES, is_negative, pairs
from lrft.data.tagged import WORDS, tagged
from lrft.data.tools import Tool, tools_of
from lrft.data.turns import Message, answer, filled, messages_of, require_answers, string
from lrft.errors import nearest
from lrft.registry import DEFAULT_ROWS, ROWS, objectives_for

REQUIRED: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "completion": ("prompt", "completion"),
    "text": ("text",),
    "labelled": ("label",),
    "scored": ("label",),
    "preference": ("chosen", "rejected"),
    "kto": ("label",),
    "tagged": WORDS[0],
    "pairs": SIDES[0],
}
# Where other columns do as well: all that do, of which those in REQUIRED are the first.
ALTERNATIVES: dict[str, tuple[tuple[str, ...], ...]] = {"tagged": WORDS, "pairs": SIDES}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "messages": ("system", "tools", "weight"),
    "sharegpt": ("system", "tools", "weight"),
    "alpaca": ("input", "system", "history", "weight"),
    "completion": ("tools", "weight"),
    "text": ("weight",),
    "labelled": TEXTS,
    "scored": TEXTS,
    "preference": ("prompt", "conversations", "system", "tools", "margin"),
    "kto": ("prompt", "completion", "messages", "conversations", "system", "tools"),
    "tagged": tuple(dict.fromkeys(column for words in WORDS[1:] for column in words)),
    "pairs": (*dict.fromkeys(column for sides in SIDES[1:] for column in sides), *NEGATIVES),
}
COLUMNS = tuple(dict.fromkeys(c for names in (*REQUIRED.values(), *OPTIONAL.values()) for c in names))
# Columns that change the conversation: where one is filled and not used, another conversation would be trained.
TELLING = ("system", "history", "tools", "functions", "images", "videos", "audios")
LEFT_OUT = "none"
"""Renames a column out of the rows"""
# What other data sets call our columns: only used to suggest a renaming, never to guess one.
ALSO_CALLED: dict[str, tuple[str, ...]] = {
    "messages": ("conversation", "chat", "dialog", "dialogue", "turns"),
    "instruction": ("task",),
    "prompt": ("question", "query", "source", "mr", "problem", "user", "context", "input", "instruction"),
    "completion": ("answer", "response", "target", "ref", "solution", "label", "reply", "assistant", "output"),
    "text": ("content", "document", "story", "body"),
    "chosen": ("chosen_response", "preferred", "accepted"),
    "rejected": ("rejected_response", "dispreferred"),
    "label": (
        "labels",
        "class",
        "category",
        "score",
        "sentiment",
        "intent",
        "stars",
        "rating",
        "kto_tag",
        "desirable",
        "thumbs_up",
    ),
}

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


def required(kind: str) -> dict[str, tuple[str, ...]]:
    """The columns that the formats of a kind of rows need, by format."""
    return {name: REQUIRED[name] for name in ROWS[kind].formats}


def fitting(columns: Iterable[str], kind: str) -> dict[str, tuple[str, ...]]:
    """The formats of this kind that fit these columns, each with those that it needs."""
    found = set(columns)
    ways = ((name, way) for name, wanted in required(kind).items() for way in ALTERNATIVES.get(name, (wanted,)))
    fits: dict[str, tuple[str, ...]] = {}
    for name, way in ways:
        if found.issuperset(way):
            fits.setdefault(name, way)
    return fits


def detect(columns: Iterable[str], kind: str = DEFAULT_ROWS) -> str | None:
    """The one format of this kind that fits these columns, or None when none or several do."""
    fits = list(fitting(columns, kind))
    return fits[0] if len(fits) == 1 else None


def best_kind(columns: Iterable[str]) -> tuple[str, dict[str, int]]:
    """The kind of rows that reads the most of these columns, and how many each kind reads."""
    found = set(columns)
    read = {
        kind: max(
            (len(found & {*wanted, *OPTIONAL.get(name, ())}) for name, wanted in fitting(found, kind).items()),
            default=0,
        )
        for kind in ROWS
    }
    return max(read, key=lambda kind: read[kind]), read


def other_kind(record: Mapping[str, Any], kind: str) -> str:
    """What a record is and which objectives take it, where its columns fit another kind of rows alone; else ""."""
    best, read = best_kind(record)
    if not read[best] or read[kind]:
        return ""
    theirs = objectives_for(best)
    way = f"; training.objective: {' or '.join(theirs)} takes those" if theirs else ""
    return f"the columns {', '.join(record)} are {ROWS[best].words}{way}"


def unclear(record: Mapping[str, Any], kind: str = DEFAULT_ROWS) -> tuple[str, dict[str, Any]]:
    """Why `detect` found nothing in the columns of a record, and the keys of the data entry that would help."""
    listed, formats = ", ".join(record) or "none", required(kind)
    fits = list(fitting(record, kind))
    if fits:
        return f"the columns {listed} fit {' and '.join(fits)}", {"format": fits[0]}
    if {"chosen", "rejected"} <= record.keys() and (other := other_kind(record, kind)):
        ours = "messages" if isinstance(record["chosen"], list) else "completion"
        return other, _entry_keys(record, {"chosen": ours}, kind)
    message = f"the columns {listed} match no format ({formats_in_words(kind)})"
    close = [_renaming(wanted, list(record)) for wanted in formats.values()]
    whole = [found for found, wanted in zip(close, formats.values(), strict=True) if len(found) == len(wanted)]
    if not whole:
        return message, {}
    best = max(whole, key=lambda found: (sum(ours == theirs for ours, theirs in found.items()), len(found)))
    return message, _entry_keys(record, {theirs: ours for ours, theirs in best.items() if ours != theirs}, kind)


def formats_in_words(kind: str = DEFAULT_ROWS) -> str:
    """`messages: messages; alpaca: instruction and output; ...`"""
    ways = {name: ALTERNATIVES.get(name, (wanted,)) for name, wanted in required(kind).items()}
    return "; ".join(f"{name}: {', or '.join(map(' and '.join, given))}" for name, given in ways.items())


def _entry_keys(record: Mapping[str, Any], ours_of: Mapping[str, str], kind: str) -> dict[str, Any]:
    """`columns` for this renaming, and `format` where the renamed columns would fit several."""
    after = [ours_of.get(name, name) for name in record]
    fits = list(fitting(after, kind))
    meant = [name for name in fits if set(ours_of.values()) & set(REQUIRED[name])]
    return {"columns": dict(ours_of), **({"format": meant[0]} if len(fits) > 1 and meant else {})}


def _renaming(wanted: Iterable[str], found: list[str]) -> dict[str, str]:
    """{our name: their name} for as many wanted columns as possible."""
    chosen: dict[str, str] = {}
    for ours in wanted:
        free = [c for c in found if c not in chosen.values()]
        same = [c for c in free if c == ours]
        known = [c for c in free if c.lower() in ALSO_CALLED.get(ours, ())]
        if pick := same or known or nearest(ours, free):
            chosen[ours] = pick[0]
    return chosen


def rename(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the user's names replaced by ours. Raises BadRow when a column that every row needs is missing.

    Columns that rows may lack are renamed where they stand.
    """
    for theirs, ours in columns.items():
        if theirs not in record and not is_optional(ours):
            raise BadRow("missing key", f"no '{theirs}'; there are {', '.join(record) or 'none'}", theirs)
    kept = {name: value for name, value in record.items() if name not in columns}
    named = {ours: record[theirs] for theirs, ours in columns.items() if theirs in record and ours != LEFT_OUT}
    return {**kept, **named}


def is_optional(ours: str) -> bool:
    """Whether rows may lack the column."""
    needed = any(ours in names for names in REQUIRED.values())
    return ours == LEFT_OUT or (not needed and any(ours in names for names in OPTIONAL.values()))


def unused(record: Mapping[str, Any], name: str) -> list[str]:
    """The columns that the format `name` does not read."""
    used = {*REQUIRED[name], *OPTIONAL.get(name, ())}
    return [column for column in record if column not in used and not (name == "pairs" and is_negative(column))]


@dataclass(frozen=True)
class Reading:
    """How the records of a source become samples.

    chat: the tokenizer has a chat template. Alpaca rows become a user turn and an answer with it, and the classic
    alpaca text without it. tokens: the text of special tokens stands for these tokens. writes_tools: the template
    writes definitions of tools; `tools` are for rows without their own.
    """

    chat: bool
    tokens: bool = False
    writes_tools: bool = False
    tools: tuple[Tool, ...] = ()


def sample(record: Mapping[str, Any], name: str, reading: Reading) -> Sample:
    """The sample that `record` is under the format `name`. Raises BadRow."""
    pictures.refuse(record)
    for column in REQUIRED[name] if name not in ALTERNATIVES else ():
        if column not in record:
            raise BadRow("missing key", f"no '{column}'; there are {', '.join(record) or 'none'}", column)
    made = _SAMPLES[name](record, reading.chat).with_tokens(reading.tokens)
    if "weight" in OPTIONAL.get(name, ()) and is_filled(record.get("weight")):
        made = replace(made, weight=_weight(record["weight"]))
    if name == "text":  # a document has been put together by whoever wrote it
        return made
    _refuse_telling(record, name)
    own = listed(record.get("tools")) if "tools" in OPTIONAL.get(name, ()) else None
    if is_filled(own) and not made.messages:
        raise BadRow("column tools", "is not empty, and only conversations have tools", "tools")
    if not made.messages or not (is_filled(own) or reading.tools):
        return made
    if not reading.writes_tools:
        raise BadRow("column tools", "is not empty, and the chat template writes no tools", "tools")
    return made.with_tools(tools_of(own, "tools") if is_filled(own) else reading.tools)


def _weight(value: Any) -> float:
    """What each trained token of a row counts, above 0. Raises BadRow."""
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise BadRow("weight", f"must be a number of at least 0, this is {value!r}", "weight")
    if weight == 0:
        raise BadRow(NO_TOKEN, "weight 0: no token counts", "weight")
    return weight


def _refuse_telling(record: Mapping[str, Any], name: str) -> None:
    for column in unused(record, name):
        if column in TELLING and is_filled(listed(record[column])):
            raise BadRow(f"column {column}", f"is not empty, and format {name} does not use it", column)


def _messages(record: Mapping[str, Any], chat: bool) -> Sample:
    return _conversation(record, "messages")


def _sharegpt(record: Mapping[str, Any], chat: bool) -> Sample:
    return _conversation(record, "conversations")


def _conversation(record: Mapping[str, Any], field: str) -> Sample:
    messages, untrained = messages_of(record[field], field)
    require_answers(messages, field)
    return with_system(Sample(messages=messages, untrained=untrained), system_turn(record), field)


def _completion(record: Mapping[str, Any], chat: bool) -> Sample:
    prompt, completion = record["prompt"], record["completion"]
    if not (isinstance(prompt, list) and isinstance(completion, list)):
        return Sample(prompt=string(prompt, "prompt"), answer=answer(completion, "completion"))
    if not chat:
        raise BadRow(NO_TEMPLATE, "is a list of turns, which requires a chat template", "prompt")
    asked, _ = messages_of(prompt, "prompt")
    answered, untrained = messages_of(completion, "completion")
    require_answers((*asked, *answered), "completion")
    shown = (i for i, message in enumerate(asked) if message["role"] == "assistant")
    return Sample(messages=(*asked, *answered), untrained=frozenset((*shown, *(i + len(asked) for i in untrained))))


def _text(record: Mapping[str, Any], chat: bool) -> Sample:
    return Sample(document=filled(record["text"], "text"))


def _alpaca(record: Mapping[str, Any], chat: bool) -> Sample:
    instruction = filled(record["instruction"], "instruction")
    extra = record.get("input")
    given = "" if extra is None else string(extra, "input")
    output = answer(record["output"], "output")
    before = (*system_turn(record), *_history(record))
    if chat:
        content = f"{instruction}\n\n{given}" if given else instruction
        turn = {"role": "user", "content": content}
        return Sample(messages=(*before, turn, {"role": "assistant", "content": output}))
    if before:
        column = "system" if is_filled(record.get("system")) else "history"
        raise BadRow(NO_TEMPLATE, "is not empty, which requires a chat template", column)
    # Replaced one by one: str.format would read braces in the user's text.
    text = CLASSIC_INPUT if given else CLASSIC
    head, tail = text.split("{instruction}")
    return Sample(prompt=head + instruction + tail.replace("{input}", given), answer=output)


def _history(record: Mapping[str, Any]) -> tuple[Message, ...]:
    """Earlier questions and answers: [[question, answer], ...], or JSON text of it."""
    pairs = listed(record.get("history"))
    if not is_filled(pairs):
        return ()
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise BadRow("wrong type", f"must be a list of [question, answer], this is {kind_of(pairs)}", "history")
    return tuple(
        {"role": role, "content": read(text, f"history[{i}]")}
        for i, pair in enumerate(pairs)
        for role, read, text in (("user", string, pair[0]), ("assistant", answer, pair[1]))
    )


_SAMPLES: Mapping[str, Callable[[Mapping[str, Any], bool], Sample]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "completion": _completion,
    "text": _text,
    "labelled": labelled,
    "scored": scored,
    "preference": preference,
    "kto": kto,
    "tagged": tagged,
    "pairs": pairs,
}

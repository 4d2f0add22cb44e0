"""From a raw record to two answers to one prompt, or to one answer and whether it is a good one.

preference  {"prompt": P, "chosen": A, "rejected": A}, P a text or a list of turns, A a text, a turn or a list of turns;
            {"conversations": turns, "chosen": A, "rejected": A};
            {"chosen": turns, "rejected": turns}, whole conversations: what both begin with is the prompt.
            Any may have a column "system", and a number "margin", by which the chosen answer is the better one.
kto         {"prompt": P, "completion": A, "label": true}, {"messages": turns, "label": true}, and the same with
            "conversations"; the label is of the last answer. Any may have a column "system".

Texts alone are put together as they are, as in the format completion. Where there are turns, a chat template writes
them; a text among them is one turn. Answers in the prompt are shown and not trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from lrft.data.records import BadRow, kind_of
from lrft.data.sample import NO_TEMPLATE, Sample, is_filled, system_turn, with_system
from lrft.data.turns import Message, answer, messages_of, string

EQUAL = "equal answers"
LABELS = {"true": 1.0, "false": 0.0}
Turns = tuple[Message, ...]
Side = str | Turns
"""A text, or turns"""


def preference(record: Mapping[str, Any], chat: bool) -> Sample:
    """The chosen answer, and beside it the rejected one. Raises BadRow."""
    chosen, rejected = (side(record[column], column) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise BadRow(EQUAL, "chosen and rejected are the same: nothing is to be preferred")
    before = prompt_of(record)
    if before is None:
        before, chosen, rejected = shared(chosen, rejected)
    elif begins_conversation(chosen) and begins_conversation(rejected):
        own, chosen, rejected = shared(chosen, rejected)
        refuse_other_prompt(before, own)
        before = own
    good, bad = (
        joined(record, before, one, column, chat) for column, one in (("chosen", chosen), ("rejected", rejected))
    )
    pair = good.with_beside(bad)
    return pair.with_numbers(margin=(margin_of(record["margin"]),)) if is_filled(record.get("margin")) else pair


def margin_of(value: Any) -> float:
    """Raises BadRow for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("margin", f"must be a number, this is {value!r}", "margin")
    return float(value)


def kto(record: Mapping[str, Any], chat: bool) -> Sample:
    """An answer with the number "good": 1 for a good one, 0 for a bad one. Raises BadRow."""
    label = label_of(record["label"])
    field = next((column for column in ("messages", "conversations") if is_filled(record.get(column))), None)
    if field is not None:
        turns = side(record[field], field)
        if isinstance(turns, str) or turns[-1]["role"] != "assistant" or len(turns) == 1:
            raise BadRow("no assistant turn", "must end with the answer that the label is of", field)
        made = joined(record, turns[:-1], turns[-1:], field, chat)
    else:
        before = prompt_of(record)
        if before is None or "completion" not in record:
            missing = "completion" if before is not None else "prompt"
            text = f"no '{missing}', and no 'messages' or 'conversations'; there are {', '.join(record)}"
            raise BadRow("missing key", text, missing)
        made = joined(record, before, side(record["completion"], "completion"), "completion", chat)
    return made.with_label(label, {"good": (LABELS[label],)})


def label_of(value: Any) -> str:
    """ "true" or "false". Raises BadRow."""
    word = str(value).lower() if isinstance(value, bool | str) else {1: "true", 0: "false"}.get(value, "")
    if word not in LABELS:
        raise BadRow("label", f"must be true or false, this is {value!r}", "label")
    return word


def side(value: Any, field: str) -> Side:
    """A text, or the turns of a turn or of a list of turns. Raises BadRow."""
    if isinstance(value, str):
        return answer(value, field)
    if not isinstance(value, list | dict):
        raise BadRow(
            "null" if value is None else "wrong type", f"must be text or turns, this is {kind_of(value)}", field
        )
    turns, _ = messages_of([value] if isinstance(value, dict) else value, field)
    if not turns:
        raise BadRow("empty", "holds no turns", field)
    return turns


def prompt_of(record: Mapping[str, Any]) -> Side | None:
    """What stands before the answers; None where no column says it. Raises BadRow."""
    for column in ("prompt", "conversations"):
        value = record.get(column)
        if is_filled(value):
            return string(value, column) if isinstance(value, str) else side(value, column)
    return None


def begins_conversation(one: Side) -> bool:
    return not isinstance(one, str) and one[0]["role"] != "assistant"


def shared(chosen: Side, rejected: Side) -> tuple[Turns, Turns, Turns]:
    """(prompt, chosen, rejected) of two whole conversations. Raises BadRow."""
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise BadRow("missing key", "no 'prompt', which texts need: only whole conversations go without", "prompt")
    n = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
    for column, turns in (("chosen", chosen), ("rejected", rejected)):
        if n == 0 or n == len(turns) or turns[n]["role"] != "assistant":
            what = "share no first turn" if n == 0 else "part at a turn that is no answer"
            raise BadRow("prompts differ", f"chosen and rejected {what}", column)
    return chosen[:n], chosen[n:], rejected[n:]


def refuse_other_prompt(given: Side, own: Turns) -> None:
    """Raise BadRow where the column prompt says something else than the conversations that hold it too."""
    said = [turn.get("content") for turn in own]
    wanted = [given] if isinstance(given, str) else [turn.get("content") for turn in given]
    if any(text not in said for text in wanted):
        raise BadRow("prompts differ", "is not what chosen and rejected begin with", "prompt")


def joined(record: Mapping[str, Any], before: Side, after: Side, field: str, chat: bool) -> Sample:
    """The sample of an answer `after` a prompt. Raises BadRow."""
    system = system_turn(record)
    if isinstance(before, str) and isinstance(after, str) and not system:
        return Sample(prompt=before, answer=after)
    if not chat:
        raise BadRow(NO_TEMPLATE, "is a list of turns, which requires a chat template", "system" if system else field)
    asked: Turns = ({"role": "user", "content": before},) if isinstance(before, str) else before
    answered: Turns = ({"role": "assistant", "content": after},) if isinstance(after, str) else after
    if not any(turn["role"] == "assistant" for turn in answered):
        raise BadRow("no assistant turn", "no assistant turn, so no trained tokens", field)
    shown = frozenset(i for i, turn in enumerate(asked) if turn["role"] == "assistant")
    return with_system(Sample(messages=(*asked, *answered), untrained=shown), system, field)

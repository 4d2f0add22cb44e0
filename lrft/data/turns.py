"""From a list of turns, as conversations are written down, to messages with a role and a content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrft.data.records import BadRow, kind_of, listed
from lrft.data.tools import CALLS, calls_of

Message = dict[str, Any]
"""role and content, a text; an answer may have tool_calls (`lrft.data.tools`), then also no content, and
reasoning_content; a turn of a tool may have tool_call_id and name"""

# Both layouts name their roles from both: OpenAI's (user, assistant) and ShareGPT's (human, gpt).
ROLES = {
    **{name: name for name in ("user", "assistant", "system", "developer", "tool")},
    **{"human": "user", "gpt": "assistant"},
}
SPEAKERS = {"role": "content", "from": "value"}
"""The key that names who speaks, and the one that holds what is said"""
# Who calls a tool, and who answers, where a role says so: LLaMA-Factory's, and OpenAI's before there were tool calls.
_CALLING = ("function_call",)
_RESULTS = ("function", "observation")
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""The keys that hold the thoughts before an answer, as transformers knows them"""
_OF_ROLE = {
    "assistant": ("tool_calls", "function_call", *_REASONING),
    "tool": ("tool_call_id", "name"),
}


def messages_of(turns: Any, field: str) -> tuple[tuple[Message, ...], frozenset[int]]:
    """The messages of a list of turns, or JSON text of one, and the numbers of answers that are not trained.

    A system turn without content says nothing and is left out. Raises BadRow.
    """
    turns = listed(turns)
    if not isinstance(turns, list):
        raise BadRow(null_or_type(turns), f"must be a list of turns, this is {kind_of(turns)}", field)
    read = [_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)]
    kept = [(message, trained) for message, trained in read if message is not None]
    _require_calls([message for message, _ in kept], field)
    return tuple(message for message, _ in kept), frozenset(i for i, (_, trained) in enumerate(kept) if not trained)


def require_answers(messages: tuple[Message, ...], field: str) -> None:
    """Raise BadRow for a conversation without an answer, or of answers alone."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if not answers:
        raise BadRow("no assistant turn", "no assistant turn, so no trained tokens", field)
    if answers == len(messages):
        raise BadRow("answer before a question", "only assistant turns, no question", field)


def _require_calls(messages: list[Message], field: str) -> None:
    """Raise BadRow for a result whose call is not there."""
    calls = {call.get("id") for message in messages for call in message.get("tool_calls", ())}
    for i, message in enumerate(messages):
        wanted = message.get("tool_call_id")
        if wanted is not None and calls - {None} and wanted not in calls:
            known = ", ".join(str(call) for call in calls if call is not None)
            raise BadRow(CALLS, f"answers the call {wanted!r}, which is not there; there are {known}", f"{field}[{i}]")


def _turn(turn: Any, field: str) -> tuple[Message | None, bool]:
    """A message, and whether it may be trained."""
    if not isinstance(turn, dict):
        raise BadRow(null_or_type(turn), f"must be an object with role and content, this is {kind_of(turn)}", field)
    who = next((key for key in SPEAKERS if key in turn), None)
    what = SPEAKERS[who] if who else ""
    calls = any(turn.get(key) for key in ("tool_calls", "function_call"))
    if who is None or (what not in turn and not calls):
        missing = what or "role"
        raise BadRow("missing key", f"no '{missing}'; there are {', '.join(turn) or 'none'}", field)
    calling = turn[who] in _CALLING
    role = "assistant" if calling else _role(turn[who], f"{field}.{who}")
    _refuse_others(turn, field, (who, what, "weight", "train", *_OF_ROLE.get(role, ())))
    trained = _trained(turn, role, field)
    content = turn.get(what)
    if role in ("system", "developer") and content is None:
        return None, trained
    if calling:
        return {"role": role, "tool_calls": calls_of(content, f"{field}.{what}")}, trained
    message = {"role": role, **_beside(turn, role, field)}
    if content is not None or "tool_calls" not in message:
        said = _joined(content, f"{field}.{what}")
        is_answer = role == "assistant" and "tool_calls" not in message
        message["content"] = (answer if is_answer else string)(said, f"{field}.{what}")
    return message, trained


def _beside(turn: Mapping[str, Any], role: str, field: str) -> Message:
    """What a turn holds beside its content."""
    found: Message = {}
    if role == "assistant":
        if calls := turn.get("tool_calls") or turn.get("function_call"):
            found["tool_calls"] = calls_of(calls, f"{field}.tool_calls")
        if key := next((key for key in _REASONING if turn.get(key) not in (None, "")), None):
            found["reasoning_content"] = string(turn[key], f"{field}.{key}")
    if role == "tool":
        for key in ("tool_call_id", "name"):
            if turn.get(key) is not None:
                found[key] = string(turn[key], f"{field}.{key}")
    return found


def _refuse_others(turn: Mapping[str, Any], field: str, known: tuple[str, ...]) -> None:
    """What the template would be given otherwise is not to be passed over."""
    others = [key for key, value in turn.items() if key not in known and value not in (None, [], "")]
    if others:
        raise BadRow("unknown key in a turn", f"'{others[0]}' is not supported here, only {', '.join(known)}", field)


def _role(role: Any, field: str) -> str:
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    if role in _RESULTS:
        return "tool"
    known = ", ".join((*ROLES, *_CALLING, *_RESULTS))
    raise BadRow("unknown role", f"{role!r}; known are {known}", field)


def _trained(turn: Mapping[str, Any], role: str, field: str) -> bool:
    """What weight (0 or 1) and train say, which are two ways to write the same."""
    weight, train = turn.get("weight"), turn.get("train")
    if train is not None and not isinstance(train, bool):
        raise BadRow("weight", f"train {train!r}: an answer is trained (true) or not (false)", field)
    if weight is not None and train is not None and bool(weight) != train:
        raise BadRow("weight", f"weight {weight!r} and train {str(train).lower()} contradict each other", field)
    return _weight(int(train) if weight is None and train is not None else weight, role, field)


def _weight(weight: Any, role: str, field: str) -> bool:
    if weight is None:
        return True
    if weight not in (0, 1):
        raise BadRow("weight", f"weight {weight!r}: an answer is trained (1) or not (0)", field)
    if weight and role != "assistant":
        raise BadRow("weight", f"weight 1 or train on a turn of the {role}: only assistant turns can be trained", field)
    return bool(weight)


def _joined(content: Any, field: str) -> Any:
    """The text of a content that is a list of text parts; anything else as it is."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    for part in content:
        if part.get("type") != "text":
            raise BadRow("content part", f"a part of type {part.get('type')!r} is not supported, only text", field)
    return "".join(string(part.get("text"), field) for part in content)


def null_or_type(value: Any) -> str:
    """The reason that a value of a wrong type is counted under."""
    return "null" if value is None else "wrong type"


def string(value: Any, field: str) -> str:
    """A text. Raises BadRow."""
    if not isinstance(value, str):
        raise BadRow(null_or_type(value), f"must be text, this is {kind_of(value)}", field)
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow("lone surrogate", "holds half of a surrogate pair, which is not a valid character", field)
    return value


def filled(value: Any, field: str) -> str:
    """A text with something in it. Raises BadRow."""
    if not string(value, field).strip():
        raise BadRow("empty", "is empty", field)
    return value


def answer(value: Any, field: str) -> str:
    """The text of an answer. Raises BadRow."""
    if not string(value, field).strip():
        raise BadRow("empty answer", "is empty", field)
    return value

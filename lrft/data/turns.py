"""From a list of turns, as conversations are written down, to messages with a role and a content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lrft.data.records import BadRow, kind_of

Message = dict[str, str]

# Both layouts name their roles from both: OpenAI's (user, assistant) and ShareGPT's (human, gpt).
ROLES = {
    **{name: name for name in ("user", "assistant", "system", "developer", "tool")},
    **{"human": "user", "gpt": "assistant"},
}
SPEAKERS = {"role": "content", "from": "value"}
"""The key that names who speaks, and the one that holds what is said"""
_TOOL_CALLS = ("tool_calls", "function_call", "tool_call_id")
_TOOL_ROLES = ("function", "function_call", "observation")


def messages_of(turns: Any, field: str) -> tuple[tuple[Message, ...], frozenset[int]]:
    """The messages of a list of turns, and the numbers of answers with weight 0. Raises BadRow.

    A system turn without content says nothing and is left out.
    """
    if not isinstance(turns, list):
        raise BadRow(null_or_type(turns), f"must be a list of turns, this is {kind_of(turns)}", field)
    read = [_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)]
    kept = [(message, trained) for message, trained in read if message is not None]
    return tuple(message for message, _ in kept), frozenset(i for i, (_, trained) in enumerate(kept) if not trained)


def require_answers(messages: tuple[Message, ...], field: str) -> None:
    """Raise BadRow for a conversation without an answer, or of answers alone."""
    answers = sum(message["role"] == "assistant" for message in messages)
    if not answers:
        raise BadRow("no assistant turn", "no assistant turn, so no trained tokens", field)
    if answers == len(messages):
        raise BadRow("answer before a question", "only assistant turns, no question", field)


def _turn(turn: Any, field: str) -> tuple[Message | None, bool]:
    """A message, and whether it may be trained."""
    if not isinstance(turn, dict):
        raise BadRow(null_or_type(turn), f"must be an object with role and content, this is {kind_of(turn)}", field)
    who = next((key for key in SPEAKERS if key in turn), None)
    if who is None or SPEAKERS[who] not in turn:
        missing = SPEAKERS[who] if who else "role"
        raise BadRow("missing key", f"no '{missing}'; there are {', '.join(turn) or 'none'}", field)
    what = SPEAKERS[who]
    _refuse_others(turn, field, (who, what, "weight"))
    role = _role(turn[who], f"{field}.{who}")
    trained = _weight(turn.get("weight"), role, field)
    if role in ("system", "developer") and turn[what] is None:
        return None, trained
    text = (answer if role == "assistant" else string)(_joined(turn[what], f"{field}.{what}"), f"{field}.{what}")
    return {"role": role, "content": text}, trained


def _refuse_others(turn: Mapping[str, Any], field: str, known: tuple[str, ...]) -> None:
    """Tool calls or separate reasoning change what the template writes: not to be passed over."""
    others = [key for key, value in turn.items() if key not in known and value not in (None, [], "")]
    if any(key in _TOOL_CALLS for key in others):
        raise BadRow("tool calls", "tool calls are not supported in this version", field)
    if others:
        raise BadRow("unknown key in a turn", f"'{others[0]}' is not supported, only {', '.join(known)}", field)


def _role(role: Any, field: str) -> str:
    if isinstance(role, str) and role in ROLES:
        return ROLES[role]
    if role in _TOOL_ROLES:
        raise BadRow("tool calls", f"the role {role} is a tool call, which is not supported in this version", field)
    raise BadRow("unknown role", f"{role!r}; known are {', '.join(ROLES)}", field)


def _weight(weight: Any, role: str, field: str) -> bool:
    if weight is None:
        return True
    if weight not in (0, 1):
        raise BadRow("weight", f"weight {weight!r}: an answer is trained (1) or not (0)", field)
    if weight and role != "assistant":
        raise BadRow("weight", f"weight 1 on a turn of the {role}: only assistant turns can be trained", field)
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

"""Definitions and calls of tools, in the form that transformers hands to chat templates.

A definition is {"type": "function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}, a call
{"type": "function", "id": ..., "function": {"name": ..., "arguments": {...}}}, the id optional.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from lrft.data.records import BadRow, kind_of

Tool = dict[str, Any]
CALLS = "tool calls"
"""The reason that rows with wrong calls or results are counted under"""


def tools_of(value: Any, field: str) -> tuple[Tool, ...]:
    """Definitions from a list, or JSON text of one. A definition may be the function alone. Raises BadRow."""
    found = _parsed(value, field, "tools") if isinstance(value, str) else value
    if not isinstance(found, list):
        raise BadRow("tools", f"must be a list of tools, or JSON text of one; this is {kind_of(found)}", field)
    _require_text(found, field, "tools")
    return tuple(_tool(tool, f"{field}[{i}]") for i, tool in enumerate(found))


def _tool(tool: Any, field: str) -> Tool:
    if not isinstance(tool, dict):
        raise BadRow("tools", f"must be an object, this is {kind_of(tool)}", field)
    whole = tool if "function" in tool else {"type": "function", "function": tool}
    function = whole["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow("tools", 'has no name: expected {"type": "function", "function": {"name": ...}}', field)
    return {"type": "function", **whole}


def calls_of(value: Any, field: str) -> list[Tool]:
    """The calls of a turn from a list of them, or from one. Arguments may be JSON text of an object. Raises BadRow."""
    found = _parsed(value, field, CALLS) if isinstance(value, str) else value
    _require_text(found, field, CALLS)
    several = found if isinstance(found, list) else [found]
    return [_call(call, f"{field}[{i}]" if isinstance(found, list) else field) for i, call in enumerate(several)]


def _call(call: Any, field: str) -> Tool:
    if not isinstance(call, dict):
        raise BadRow(CALLS, f"must be an object, this is {kind_of(call)}", field)
    function = call.get("function", call)
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(CALLS, 'has no name: expected {"function": {"name": ..., "arguments": {...}}}', field)
    given = function.get("arguments")
    arguments = _parsed(given, f"{field}.arguments", CALLS) if isinstance(given, str) and given.strip() else given
    if not isinstance(arguments or {}, dict):
        raise BadRow(
            CALLS, f"must be an object or JSON text of one, this is {kind_of(arguments)}", f"{field}.arguments"
        )
    made: Tool = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    if call.get("id") is not None:
        made["id"] = call["id"]
    return made


def _parsed(text: str, field: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow(reason, f"the text is not JSON: {error}", field) from None


def _require_text(value: Any, field: str, reason: str) -> None:
    """Raise BadRow for what no template can write: half characters, dates, bytes."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise BadRow(reason, f"cannot be written as JSON: {error}", field) from None


def with_text_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its calls as JSON text, for templates that join them to text."""
    if "tool_calls" not in message:
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def texts_in(value: Any) -> list[str]:
    """Every text in a JSON value, keys included."""
    found: list[str] = []
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            found += one
            left += reversed(one.values())
        elif isinstance(one, list | tuple):
            left += reversed(one)
    return found


def changed(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with every text in it, keys included, passed through `change`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): changed(item, change) for key, item in value.items()}
    return [changed(item, change) for item in value] if isinstance(value, list | tuple) else value

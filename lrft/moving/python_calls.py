"""Literal arguments of the calls in a Python file, read by `ast`. Nothing is imported or executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.errors import UsageError
from lrft.foreign.unsloth import CALLS, POSITIONAL

_OPERATORS: Mapping[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class Computed(str):
    """The source of a value that only running the file would give."""


def keys(text: str, path: Path) -> dict[str, Any]:
    """{name of the call: {argument: value}} of the calls in `CALLS`; the first call of each wins. Raises UsageError."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}:{getattr(error, 'lineno', None) or 1}: this is not Python: {error}") from None
    constants = _constants(tree)
    found: dict[str, dict[str, Any]] = {}
    for call in (node for node in _in_order(tree) if isinstance(node, ast.Call)):
        function = ast.unparse(call.func)
        name = _name(function)
        if name is None or (name in found and name != "args"):
            continue
        given = dict(zip(POSITIONAL.get(name, ()), call.args, strict=False))
        given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
        values = {argument: _value(node, constants) for argument, node in given.items()}
        if name == "trainer":
            values = {"class": function.rsplit(".", 1)[-1], **_settings(values)}
        found.setdefault(name, {}).update(_settings(values))
    if not found:
        raise UsageError(f"{path} calls neither Unsloth's from_pretrained nor a trainer of TRL")
    return found


def _name(function: str) -> str | None:
    for pattern, name in CALLS.items():
        # A loaded model is trained; one that is only read again, at the end of a notebook, has a name with _.
        if function == pattern or (pattern[0] == "*" and function.endswith(pattern[1:]) and function[0] != "_"):
            return name
    return None


def _in_order(tree: ast.AST) -> list[ast.AST]:
    return sorted(ast.walk(tree), key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))


def _constants(tree: ast.AST) -> dict[str, Any]:
    """Names that are given one literal value in the file."""
    constants: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                constants.setdefault(node.targets[0].id, ast.literal_eval(node.value))
            except (ValueError, TypeError, SyntaxError, RecursionError):
                continue
    return constants


def _settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without objects of the program (models, tokenizers, data sets), which are no settings."""
    objects = (
        "model",
        "tokenizer",
        "processing_class",
        "train_dataset",
        "eval_dataset",
        "args",
        "data_collator",
        "callbacks",
    )
    return {name: value for name, value in values.items() if name not in objects}


def _value(node: ast.expr, constants: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        sides = [_value(side, constants) for side in (node.left, node.right)]
        if all(type(side) in (int, float) and abs(side) < 1e9 for side in sides) and sides[1]:
            return _OPERATORS[type(node.op)](*sides)
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "torch":
        return node.attr
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return Computed(ast.unparse(node))

"""Conversions of what other tools say of data: splits, columns, templates, weights of sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.moving.conversion import Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.moving.plain_values import is_on, number, same


def _held_out(value: Any, by: Any, folder: Path) -> Any:
    value = same(value, by, folder)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise Unsaid("data.validation: a fraction, a number of rows or a file")
    if value <= 0:
        return "none"
    return value if value < 1 else int(value)


def _train_on_inputs(value: Any, by: Any, folder: Path) -> str:
    return "all" if is_on(value) else "assistant"


def _template(value: Any, by: Any, folder: Path) -> str:
    text = str(value)
    if "{%" in text or "{{" in text:
        raise Unsaid("a template's text belongs into a .jinja file: data.chat_template: FILE.jinja")
    if text.endswith(".jinja"):
        return text
    raise Nothing("the tokenizer's own chat template is the default of data.chat_template")


def _text_column(value: Any, by: Any, folder: Path) -> dict[str, str]:
    if not value or value == "text":
        raise Nothing("text is the column that rows of text have")
    return {str(value): "text"}


def _renamed(value: Any, by: Any, folder: Path) -> dict[str, str]:
    """{column in the file: column of lrft} from torchtune's {its column: column in the file}."""
    names = {"input": "prompt", "output": "completion", "text": "text", "instruction": "instruction"}
    if not isinstance(value, dict) or not set(value) <= set(names):
        raise Unsaid("data.train.columns: {column in the file: column of lrft}")
    return {str(theirs): names[name] for name, theirs in value.items()}


def _whole_split(value: Any, by: Any, folder: Path) -> str:
    if not re.fullmatch(r"[\w.-]+", str(value)):
        raise Unsaid("a slice of a split: data.train.limit takes some rows, data.validation holds some out")
    return str(value)


def _weights(value: Any, by: Any, folder: Path) -> list[float]:
    words = value if isinstance(value, list) else str(value).split(",")
    return [number(word, by, folder) for word in words]


CONVERSIONS: Mapping[str, Conversion] = {
    "held_out": _held_out,
    "train_on_inputs": _train_on_inputs,
    "template": _template,
    "text_column": _text_column,
    "renamed": _renamed,
    "whole_split": _whole_split,
    "weights": _weights,
}

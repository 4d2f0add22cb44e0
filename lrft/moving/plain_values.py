"""Conversions of values that mean the same under another name: texts, numbers, flags, words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lrft.moving.conversion import OFF, Conversion
from lrft.moving.draft import Nothing, Unsaid
from lrft.recipe.yaml_scalars import looks_like_number, resolve


def same(value: Any, by: Any, folder: Path) -> Any:
    if isinstance(value, str) and looks_like_number(value):
        return resolve(value)
    return value


def _text(value: Any, by: Any, folder: Path) -> str:
    if isinstance(value, dict | list):
        raise Unsaid("expected text")
    return str(value)


def number(value: Any, by: Any, folder: Path) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Unsaid("expected a number") from None


def above_zero(value: Any, by: Any, folder: Path) -> Any:
    value = same(value, by, folder)
    if not isinstance(value, int | float) or value <= 0:
        raise Nothing(OFF)
    return value


def is_on(value: Any) -> bool:
    return value is True or str(value).lower() in ("true", "1", "yes")


def _flag(value: Any, by: Any, folder: Path) -> Any:
    """`by` when the flag is on."""
    if value == "auto":
        raise Nothing("auto, as by default")
    if not is_on(value):
        raise Nothing(OFF)
    return by


def _unless(value: Any, by: Any, folder: Path) -> Any:
    if is_on(value):
        raise Nothing(OFF)
    return by


def _words(value: Any, by: Mapping[str, str], folder: Path) -> str:
    word = str(value).lower() if isinstance(value, bool) else str(value)
    if word not in by:
        raise Unsaid(f"values with a counterpart: {', '.join(by)}")
    return by[word]


def _option(value: Any, by: str, folder: Path) -> dict[str, Any]:
    return {by: value}


def _refused(value: Any, by: str, folder: Path) -> Any:
    """A switch of something that lrft does not have: nothing is lost where it is off. by: the reason."""
    if value in ("none", False):
        raise Nothing(OFF)
    raise Unsaid(by)


CONVERSIONS: Mapping[str, Conversion] = {
    "same": same,
    "text": _text,
    "number": number,
    "above_zero": above_zero,
    "flag": _flag,
    "unless": _unless,
    "words": _words,
    "option": _option,
    "refused": _refused,
}

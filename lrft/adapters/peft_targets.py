"""Layers that a configuration of PEFT chooses, for the types whose files name none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lrft.adapters.targets import depth_of

# Settings of other layers that are not read here.
UNREAD = ("layers_pattern", "exclude_modules")


def refusal(config: Mapping[str, Any]) -> str:
    """The first setting that is not read; "" for none."""
    found = next((key for key in UNREAD if config.get(key)), "")
    return f"{found} is set, which lrft does not read for a file that names no layer" if found else ""


def targeted(config: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those of `names`, the model's linear layers, by PEFT's rule."""
    chosen, blocks = config.get("target_modules") or [], config.get("layers_to_transform")
    blocks = [blocks] if isinstance(blocks, int) else blocks
    beside = [rf"(^|.*\.){word}($|\..*)" for word in config.get("modules_to_save") or []]
    return [
        name
        for name in names
        if matches(chosen, name)
        and not any(re.match(pattern, name) for pattern in beside)
        and (not blocks or depth_of(name) in blocks)
    ]


def matches(said: str | Sequence[str], name: str) -> bool:
    """A text is a regular expression for the whole name, a list has names and ends of names after a dot."""
    if isinstance(said, str):
        return re.fullmatch(said, name) is not None
    return any(name == word or name.endswith(f".{word}") for word in said)

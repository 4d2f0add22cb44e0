"""A recipe in the making: values by their key, where each came from, and what did not get a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Keys to which several keys of another tool may add.
LISTS = ("adapter.method", "adapter.target_modules", "data.train", "logging.report_to", "evaluation.metrics")
MAPS = ("adapter.overrides", "data.template_options", "data.train.columns", "training.lr_scheduler.options")


class Unsaid(Exception):
    """A value has no counterpart; the text is the reason."""


class Nothing(Exception):
    """A value asks for nothing that lrft does not do anyway; the text is the reason."""


@dataclass
class Line:
    """What became of one key. place: dotted, of the recipe; "" when it has none. text: the reason then."""

    key: str
    value: Any
    place: str = ""
    text: str = ""
    needless: bool = False
    default: bool = False
    """not in the file: what the tool takes when the key is absent"""


@dataclass
class Draft:
    values: dict[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def put(self, line: Line, key: str, value: Any) -> None:
        """`value` at `key`, added to what is there where the key holds several. Raises Unsaid when the key is taken."""
        line.place = key
        if key in LISTS:
            held = self.values.setdefault(key, [])
            held += [item for item in (value if isinstance(value, list) else [value]) if item not in held]
        elif key in MAPS:
            held = self.values.setdefault(key, {})
            for name, item in value.items():
                held[name] = {**held[name], **item} if isinstance(item, dict) and name in held else item
        elif key not in self.values or self.taken_by_default(key):
            self.values[key] = value
        elif self.values[key] != value:
            line.place = ""
            raise Unsaid(f"{self.names(key)} says {key} already")

    def taken_by_default(self, key: str) -> bool:
        holders = [line for line in self.lines if line.place == key]
        return bool(holders) and all(line.default for line in holders)

    def names(self, key: str) -> str:
        """The keys of the other tool that led to `key`."""
        return ", ".join(dict.fromkeys(line.key for line in self.lines if line.place == key))

    def lose(self, key: str, reason: str, *, needless: bool = False) -> None:
        """Take `key` out; what led to it is told with `reason`."""
        self.values.pop(key, None)
        for line in self.lines:
            if line.place == key or line.place.startswith(f"{key}."):
                line.place, line.text, line.needless = "", reason, needless or line.default

    def move(self, old: str, new: str, value: Any) -> None:
        """What led to `old` leads to `new`, with `value` there."""
        self.values.pop(old, None)
        self.values[new] = value
        for line in self.lines:
            if line.place == old:
                line.place = new

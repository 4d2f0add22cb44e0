"""One YAML scalar to a value, by YAML 1.2 and not by PyYAML's 1.1.

1e-4 is a number; `no`, 1:30 and 2024-01-01 are text; only true and false are booleans. 010 is refused: it is
octal in 1.1 and ten in 1.2. 1_000 is a number, as people write it.
"""

from __future__ import annotations

import re
from typing import Any

from yaml import events

from lrft.recipe.nodes import Node, Place
from lrft.recipe.problems import Problems

MAX_DIGITS = 40
_INT = re.compile(r"[-+]?[0-9](_?[0-9])*")
_AMBIGUOUS = re.compile(r"[-+]?0[0-9_]+")
_OCTAL = re.compile(r"[-+]?0o[0-7]+")
_HEX = re.compile(r"[-+]?0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9](_?[0-9])*(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = {"inf": re.compile(r"[-+]?\.(inf|Inf|INF)"), "nan": re.compile(r"\.(nan|NaN|NAN)")}
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_SURROGATES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def scalar(event: events.ScalarEvent, place: Place, problems: Problems) -> Node:
    """The value of one scalar; a spelling that could mean two things becomes a problem."""
    text = event.value
    if event.style == '"' and _SURROGATES.search(text):
        # JSON escapes a character beyond U+FFFF as two halves; what stays half is refused below.
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    bad = CONTROL.search(text)
    if bad:
        problems.refuse(place, f"the escape gives the character {bad[0]!a}, which is not text")
        return Node("", place)
    if event.style is not None:
        return Node(text, place)
    try:
        return Node(resolve(text), place, written=text)
    except ValueError as error:
        problems.refuse(place, str(error))
        return Node(0, place, written=text)


def resolve(text: str) -> Any:
    """A plain scalar by YAML 1.2. Raises ValueError with a sentence for an ambiguous or absurd number."""
    if text in _WORDS:
        return _WORDS[text]
    numeric = _INT.fullmatch(text) or _FLOAT.fullmatch(text) or _OCTAL.fullmatch(text) or _HEX.fullmatch(text)
    if numeric and len(text) > MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} characters; put it in quotes if it is text")
    if _AMBIGUOUS.fullmatch(text):
        plain = text.replace("_", "").lstrip("+-0") or "0"
        raise ValueError(f"{text} is ambiguous: write {plain}, or 0o{plain} for octal, or quotes for text")
    if _INT.fullmatch(text):
        return int(text.replace("_", ""))
    if _OCTAL.fullmatch(text):
        return int(text.replace("0o", ""), 8)
    if _HEX.fullmatch(text):
        return int(text.replace("0x", ""), 16)
    if _FLOAT.fullmatch(text):
        return float(text.replace("_", ""))
    if any(pattern.fullmatch(text) for pattern in _SPECIAL.values()):
        return float(text.replace(".", ""))
    return text


def looks_like_number(text: str) -> bool:
    """Whether `text`, without quotes, would be read as a number."""
    try:
        value = resolve(text)
    except ValueError:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool)

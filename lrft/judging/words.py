"""Which words of two texts the other does not have, in their order."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

_PIECES = re.compile(r"\s+|\w+|[^\w\s]")
LONGEST = 4000
"""pieces of both texts together, above which they are not compared: the time grows with the square"""

Part = tuple[str, bool]
"""a stretch of a text, and whether the other text lacks it"""


def marked(first: str, second: str) -> tuple[list[Part], list[Part]]:
    """Both texts in stretches, which joined are the texts again."""
    a, b = _PIECES.findall(first), _PIECES.findall(second)
    if first == second or len(a) + len(b) > LONGEST:
        return [(first, False)], [(second, False)]
    codes = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    return (
        list(_joined((a[i:j], tag != "equal") for tag, i, j, _, _ in codes)),
        list(_joined((b[i:j], tag != "equal") for tag, _, _, i, j in codes)),
    )


def _joined(stretches: Iterator[tuple[list[str], bool]]) -> Iterator[Part]:
    """One space between two stretches of own words belongs to them: else every word is marked by itself."""
    found = [("".join(pieces), own) for pieces, own in stretches if pieces]
    kept: list[Part] = []
    for at, (text, own) in enumerate(found):
        between = 0 < at < len(found) - 1 and not own and text.isspace() and found[at + 1][1] and found[at - 1][1]
        if kept and (between or own) and kept[-1][1]:
            kept[-1] = (kept[-1][0] + text, True)
        else:
            kept.append((text, own))
    yield from kept

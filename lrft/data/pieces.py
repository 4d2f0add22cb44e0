"""Pieces of a sample's text, each known to be trained or not, and how a text is cut into them.

Where a sample holds the text of a special token that is data, it stands between two marks (characters that the sample
does not hold) while the template is applied; what stands between marks becomes a piece that is tokenised as plain text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lrft.data.records import BadRow

# Noncharacters of Unicode: legal in strings, never meant for exchange.
_MARKS = [chr(c) for c in range(0xFDD0, 0xFDF0)]


class Piece(NamedTuple):
    """A stretch of text. plain: tokenised without recognising special tokens."""

    text: str
    trained: bool
    plain: bool = False


class Span(NamedTuple):
    """A trained answer: pieces[first:last], and its reference text."""

    first: int
    last: int
    answer: str


@dataclass(frozen=True)
class Rendered:
    """A sample as text.

    spans: at least one. add_eos: the eos token follows the last piece and belongs to the last span.
    end: the token that closes the last span, "" when none does. altered: the template left out or rewrote the
    content of some turn. templated: a chat template wrote it, with all special tokens that belong there.
    """

    pieces: tuple[Piece, ...]
    spans: tuple[Span, ...]
    add_eos: bool
    end: str
    altered: bool = False
    templated: bool = False

    @property
    def marked(self) -> bool:
        """The sample holds the text of a special token."""
        return any(piece.plain for piece in self.pieces)

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds each of the texts, the longest first; nothing where there are none."""
    longest_first = sorted({t for t in texts if t}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def free_marks(texts: Sequence[str]) -> tuple[str, str]:
    """Two characters that none of the texts holds. Raises BadRow."""
    free = [mark for mark in _MARKS if not any(mark in text for text in texts)]
    if len(free) < 2:
        raise BadRow("special token in the text", "and every character that could set it apart as well")
    return free[0], free[1]


def cut(
    text: str, bounds: Sequence[tuple[int, int]], marks: tuple[str, str] | None, opening: str
) -> tuple[list[Piece], list[tuple[int, int]]]:
    """The pieces of `text`, cut at the bounds of the trained stretches and at the marks (which disappear).

    Also, for each trained stretch, the numbers of its first piece behind the `opening` and of the piece after its last.
    """
    pieces: list[Piece] = []
    places = []
    at = 0
    for start, stop in bounds:
        pieces += [Piece(t, False, plain) for t, plain in _unmark(text[at:start], marks)]
        opened = start + len(opening) * text.startswith(opening, start)
        pieces += [Piece(t, True, plain) for t, plain in _unmark(text[start:opened], marks)]
        first = len(pieces)
        pieces += [Piece(t, True, plain) for t, plain in _unmark(text[opened:stop], marks)]
        places.append((first, len(pieces)))
        at = stop
    pieces += [Piece(t, False, plain) for t, plain in _unmark(text[at:], marks)]
    return pieces, places


def _unmark(text: str, marks: tuple[str, str] | None) -> list[tuple[str, bool]]:
    """(text, plain) for each stretch that is not empty."""
    if marks is None:
        return [(text, False)] if text else []
    parts = re.split(f"{marks[0]}(.*?){marks[1]}", text, flags=re.DOTALL)
    return [(part, k % 2 == 1) for k, part in enumerate(parts) if part]

"""Text for people: numbers, wrapped tables, and a stream that never raises."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich.cells import cell_len, chop_cells

Row = tuple[str, str | Sequence[str]]

LABEL_WIDTH = 10
NARROW = 40  # columns; below this a label stands on its own line

# Escape sequences, line separators and direction overrides of user data must not reach a terminal or report.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """`text` with control characters written out, as in `\\x1b`."""
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)


def duration(seconds: float) -> str:
    """`38 s`, `21 min`, `2 h 05 min`, `3 d 4 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def decimals(value: float, digits: int) -> str:
    """Fixed point where that is readable (1.8812), otherwise an exponent (3.2e-07), `nan` or `inf`."""
    fixed = value == 0 or 10.0**-digits <= abs(value) < 1e5 or not math.isfinite(value)
    return f"{value:.{digits}f}" if fixed else f"{value:.1e}"


def count(n: int, one: str, many: str = "") -> str:
    """`1 row`, `2 rows`, `1,234 passes`."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def amount(n: int, digits: int = 1) -> str:
    """How many parameters: all digits below a million, `42,880`; else millions, `1,235.8 M`, with `digits` decimals."""
    return f"{n:,}" if n < 1_000_000 else f"{n / 1e6:,.{digits}f} M"


def byte_size(n: float) -> str:
    """Bytes in the decimal unit that fits: `0.3 MB`, `512 MB`, `1.25 GB`."""
    if n >= 999.5e6:
        return f"{n / 1e9:,.2f} GB"
    return f"{n / 1e6:.0f} MB" if n >= 10e6 or n == 0 else f"{n / 1e6:.1f} MB"


def command(*words: object, expand: bool = False) -> str:
    """A command line to be pasted: words with spaces or signs of the shell are quoted.

    expand: ${NAME} is left to the shell, as in paths that a recipe takes from the environment.
    """
    return " ".join(_quoted(str(word), expand) for word in words)


def _quoted(word: str, expand: bool) -> str:
    pieces = re.split(r"(\$\{\w+\})", word) if expand else [word]
    if len(pieces) == 1:
        return shlex.quote(word)
    return "".join(f'"{piece}"' if at % 2 else shlex.quote(piece) for at, piece in enumerate(pieces) if piece)


def flow(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns (2 or more), broken between facts (three spaces apart) first."""
    lines = []
    for fact in re.split(" {3,}", visible(text).strip()):
        words = [part for word in fact.split(" ") for part in (chop_cells(word, max(width, 2)) or [""])]
        lines += _pack(words, " ", width)
    return _pack(lines, "   ", width)


def _pack(pieces: Iterable[str], gap: str, width: int) -> list[str]:
    lines: list[str] = []
    for piece in pieces:
        if lines and cell_len(joined := lines[-1] + gap + piece) <= width:
            lines[-1] = joined
        else:
            lines.append(piece)
    return lines


def layout(rows: Iterable[Row], width: int) -> list[tuple[str, str]]:
    """The lines of a table as (label part, text part): the text starts in column 11 and wraps aligned."""
    lines = []
    for label, text in rows:
        parts = [text] if isinstance(text, str) else list(text)
        if width < NARROW:
            lines += [(label, "")] if label else []
            lines += [("  ", line) for part in parts for line in flow(part, width - 2)]
            continue
        start = f"{label:<{LABEL_WIDTH}} "
        for line in (line for part in parts for line in flow(part, width - LABEL_WIDTH - 1)):
            lines.append((start, line))
            start = " " * (LABEL_WIDTH + 1)
    return lines


def aligned(rows: Sequence[Sequence[str]], *, figures: bool = True) -> list[str]:
    """Columns two spaces apart: all to the left, or the `figures`, which are all but the first, to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = (
        [
            cell.rjust(width) if figures and at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    )
    return ["  ".join(row).rstrip() for row in padded]


class Outlet:
    """A text stream that never raises: what it cannot encode becomes `?`, and once broken it stays silent.

    `head` closing our pipe, a terminal that went away, a full disk behind a redirection: none may end a run.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding: str = (stream.encoding if stream else None) or "utf-8"
        self.broken: str | None = None  # why nothing more is written

    def write(self, text: str) -> int:
        if self._stream and not self.broken:
            try:
                self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._give_up(self._stream, error)
        return len(text)

    def flush(self) -> None:
        if self._stream and not self.broken:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(self._stream, error)

    def _give_up(self, stream: TextIO, error: Exception) -> None:
        self.broken = str(error)
        # What the stream still buffers would raise again when Python flushes it at exit.
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        """Raises OSError when there is no stream, as a stream without a file does."""
        if self._stream is None:
            raise OSError("no stream")
        return self._stream.fileno()

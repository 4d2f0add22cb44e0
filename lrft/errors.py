"""Exception classes and their exit codes.

LrftError                1    a failure of the machine; printed without a traceback, with a next step
|-- UsageError           2    wrong use of a command; nothing was started
|-- RecipeError          2    one or many problems in a recipe, each with its place
|-- DataError            3    data missing, unreadable, bad rows, nothing to train on
|-- CheckFailed          4    a self-check of the tool failed
|-- MissingError         5    a package, model or device is missing
|-- MemoryExhausted      6    out of memory, after the advice
|-- NonFinite            7    the loss or a gradient became NaN or infinite
|-- AfterFailed          8    the run is whole; a command of its recipe's `after` failed
`-- Stopped       130, 143    Ctrl-C or SIGTERM, after a complete checkpoint

Every other exception is a bug of lrft and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar


class LrftError(Exception):
    """A failure that the user can act on. `hint` is the next step, printed on a line of its own."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def lines(self) -> list[str]:
        """The text to print, without a traceback."""
        return [self.message, *([self.hint] if self.hint else [])]

    def rewrite(self, change: Callable[[str], str]) -> None:
        """Pass every text of this error through `change`."""
        self.message, self.hint = change(self.message), self.hint and change(self.hint)
        self.args = (self.message,)


class UsageError(LrftError):
    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One mistake in a recipe: `place` is file:line:column, or "argument 2", or a key of a Python dict."""

    place: str
    text: str


class RecipeError(LrftError):
    """All problems of a recipe at once."""

    exit_code = 2
    SHOWN: ClassVar[int] = 20

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(f"{p.place} {p.text}" for p in self.problems))

    def rewrite(self, change: Callable[[str], str]) -> None:
        super().rewrite(change)
        self.problems = [Problem(p.place, change(p.text)) for p in self.problems]

    def lines(self) -> list[str]:
        width = max((len(p.place) for p in self.problems[: self.SHOWN]), default=0)
        shown = [f"{p.place:<{width}}  {p.text}" for p in self.problems[: self.SHOWN]]
        more = len(self.problems) - self.SHOWN
        count = f"{len(self.problems)} problem{'s' if len(self.problems) != 1 else ''}"
        return [*shown, *([f"... and {more} more"] if more > 0 else []), f"{count}. Nothing was started."]


class DataError(LrftError):
    exit_code = 3


class CheckFailed(LrftError):
    exit_code = 4


class MissingError(LrftError):
    exit_code = 5


class MemoryExhausted(LrftError):
    exit_code = 6


class NonFinite(LrftError):
    exit_code = 7


class AfterFailed(LrftError):
    exit_code = 8


class Stopped(LrftError):
    """Stopped by a signal after the step finished and a checkpoint was written.

    `signal` is SIGINT (2) or SIGTERM (15).
    """

    def __init__(self, message: str, signal: int, hint: str | None = None) -> None:
        super().__init__(message, hint)
        self.signal = signal


def exit_code(error: LrftError) -> int:
    """The process's exit code for `error`: 128 + signal for a stopped run, else the class's own."""
    return 128 + error.signal if isinstance(error, Stopped) else error.exit_code


def nearest(word: str, names: Iterable[str], n: int = 1) -> list[str]:
    """The `n` names closest to `word`, best first; empty when none is close. Two letters that changed places are closer
    than one that is another."""
    known = list(names)
    exchanged = [name for name in known if name != word and sorted(name) == sorted(word)]
    close = difflib.get_close_matches(word, known, n=n + len(exchanged), cutoff=0.65)
    return list(dict.fromkeys([*(name for name in exchanged if name in close), *close]))[:n]

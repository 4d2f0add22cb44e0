"""How a command answers: a table for people, or with --json the same facts for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lrft.tracking.console import Reporter
    from lrft.utils.text import Row


@contextmanager
def answering(as_json: bool, facts: Mapping[str, Any] | None = None) -> Iterator[Reporter]:
    """A reporter for a command's tables. With `as_json` they go nowhere, and standard output gets one JSON object when
    the command is done: `facts`, or where there are none the tables themselves as {label: [texts]}. Warnings stay on
    the standard error in any case, and are in the object.
    """
    from lrft.tracking.console import Reporter

    if not as_json:
        with Reporter(None) as reporter:
            yield reporter
        return
    with Reporter(None, quiet=True, stream=sys.stderr) as reporter:
        collected = Collected(reporter)
        yield collected  # type: ignore[misc]
    told = dict(facts) if facts is not None else collected.told
    if reporter.warnings:
        told["warnings"] = reporter.warnings
    print(json.dumps(told, indent=1))  # ASCII: what is told may hold control characters


class Collected:
    """Stands for a reporter and keeps its tables. What it does not have is the reporter's."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.told: dict[str, Any] = {}

    def table(self, rows: Iterable[Row]) -> None:
        for label, text in rows:
            self.told.setdefault(label, []).extend([text] if isinstance(text, str) else list(text))

    def line(self, text: str) -> None:
        self.told.setdefault("lines", []).append(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reporter, name)

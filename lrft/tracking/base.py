"""Base class of trackers, which receive steps and evaluations. One file each in this folder, or an entry point of
`lrft.trackers`; `logging.report_to` names those that are not always on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar


class Tracker:
    """Abstract. A subclass is named in `logging.report_to`; its annotated fields are its options.

    Only the first process has trackers. Values of records are numbers, texts, and dicts of numbers; NaN and infinities
    are possible.
    """

    name: ClassVar[str]
    always: ClassVar[bool] = False
    """always on, so a recipe cannot list it"""

    def start(self, folder: Path, facts: Mapping[str, Any], step: int) -> None:
        """Before the first step. facts: run.json (`summary.facts`). step: done already, of a resumed run."""

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        """kind "step": step, epoch, loss, lr, grad_norm, tokens, seconds, ...; kind "eval": step, loss, perplexity,
        samples, ... Both: figures, a dict by name, where the objective has any.
        shown: a step that is due by `logging.every`."""

    def finish(self, facts: Mapping[str, Any]) -> None:
        """After the last step, with run.json as it then is."""

    def close(self) -> None:
        """At the end in any case, also of a run that failed."""

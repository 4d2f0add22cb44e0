"""All trackers of a run behind one: the console, metrics.jsonl, and those of `logging.report_to`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lrft.tracking.base import Tracker
from lrft.tracking.console import Reporter
from lrft.tracking.metrics_file import MetricsFile


class Trackers:
    """Tells each tracker. As a context manager it closes them, and the cursor returns, in any case.

    console and metrics.jsonl are the run's own: what fails there (a full disk) ends the run. Any other that fails is
    left out from then on, with one warning: it must neither stop nor slow the run.
    """

    def __init__(self, console: Reporter, metrics: MetricsFile | None, others: Sequence[Tracker] = ()) -> None:
        self.console, self.metrics, self.others = console, metrics, list(others)

    @classmethod
    def silent(cls) -> Trackers:
        """For processes that tell nothing."""
        return cls(Reporter(None, main=False), None)

    def start(self, folder: Path, facts: Mapping[str, Any], step: int) -> None:
        self._tell(lambda tracker: tracker.start(folder, facts, step))

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        self._tell(lambda tracker: tracker.log(kind, record, shown=shown))

    def finish(self, facts: Mapping[str, Any]) -> None:
        self._tell(lambda tracker: tracker.finish(facts))

    def rewind(self, step: int) -> None:
        """For a run resumed at `step`: metrics.jsonl ends there, and the console knows the best evaluation so far."""
        if self.metrics is None:
            return
        kept, unreadable = self.metrics.rewind(step)
        self.console.recall(kept)
        if unreadable:
            lines = "1 unreadable line was" if unreadable == 1 else f"{unreadable} unreadable lines were"
            self.console.warn(f"{lines} removed from metrics.jsonl (a line is cut off when a run is killed)")

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        if self.metrics is not None:
            act(self.metrics)
        act(self.console)
        for tracker in list(self.others):
            try:
                act(tracker)
            except Exception as error:
                self.others.remove(tracker)
                self.console.warn(f"tracker {tracker.name} failed and was disabled: {error}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._tell(lambda tracker: tracker.close())
        finally:
            self.console.close()
            if self.metrics is not None:
                self.metrics.close()

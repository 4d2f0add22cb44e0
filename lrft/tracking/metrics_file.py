"""metrics.jsonl: every step and evaluation of a run, one JSON object a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from lrft.runs.metrics import LineFile, json_line, read_metrics
from lrft.tracking.base import Tracker
from lrft.utils.files import write_text


class MetricsFile(Tracker):
    """metrics.jsonl in the run's folder."""

    name: ClassVar[str] = "metrics_file"
    always: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.file = LineFile(folder / "metrics.jsonl")

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        """Raises LrftError when the disk is full."""
        self.file.add(json_line({"kind": kind, **record}))

    def rewind(self, step: int) -> tuple[list[dict[str, Any]], int]:
        """Take the records of later steps out, for a run resumed at `step`. Atomic.

        Returns the records that are kept and the number of lines that were none (a kill can tear the last one).
        """
        if not self.file.path.exists():
            return [], 0
        self.file.close()
        records, unreadable = read_metrics(self.file.path)
        kept = [record for record in records if record["step"] <= step]
        write_text(self.file.path, "".join(json_line(record) + "\n" for record in kept))
        return kept, unreadable

    def close(self) -> None:
        self.file.close()

"""A tracker: step and loss as a table for a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.base import Tracker


@dataclass
class LossCsv(Tracker):
    """A file of steps and losses in the run's folder."""

    name: ClassVar[str] = "loss-csv"

    file: str = "loss.csv"
    """Its name."""

    def start(self, folder: Path, facts: Mapping[str, Any], step: int) -> None:
        self.path = folder / self.file
        old = self.path.read_text().splitlines()[1:] if step else []  # a resumed run goes on after its checkpoint
        kept = [line for line in old if int(line.split(",")[0]) <= step]
        self.path.write_text("\n".join(["step,loss", *kept, ""]))

    def log(self, kind: str, record: Mapping[str, Any], *, shown: bool = True) -> None:
        if kind == "step":
            with self.path.open("a") as file:
                file.write(f"{record['step']},{record['loss']}\n")

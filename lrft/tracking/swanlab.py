"""SwanLab."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class SwanLab(Service):
    """SwanLab. The key is SWANLAB_API_KEY or that of `swanlab login`; SWANLAB_MODE=local stays on this machine."""

    name: ClassVar[str] = "swanlab"
    needs: ClassVar[str] = "swanlab"

    project: str = "lrft"
    """Project there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import SwanLabTracker

        again = {"id": identity, "resume": "allow"} if identity else {}
        return SwanLabTracker(
            self.project, experiment_name=self.run_name or title, logdir=str(folder / "swanlab"), **again
        )

    def text(self, name: str, text: str, step: int) -> None:
        import swanlab

        self.tracker.log({name: swanlab.Text(text)}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.log_images({name: [str(path)]}, step=step)

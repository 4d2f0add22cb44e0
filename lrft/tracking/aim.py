"""Aim."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class Aim(Service):
    """Aim, in a repository on this machine."""

    name: ClassVar[str] = "aim"
    needs: ClassVar[str] = "aim"

    project: str = "lrft"
    """Experiment there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""
    repository: str = "."
    """Folder of Aim's repository."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import AimTracker

        again = {"run_hash": identity} if identity else {}
        return AimTracker(self.run_name or title, logging_dir=self.repository, experiment=self.project, **again)

    def identity(self) -> str | None:
        return str(self.tracker.tracker.hash)

    def text(self, name: str, text: str, step: int) -> None:
        import aim

        self.tracker.tracker.track(aim.Text(text), name=name, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.log_images({name: str(path)}, step=step)

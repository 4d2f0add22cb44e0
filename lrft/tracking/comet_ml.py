"""Comet."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class Comet(Service):
    """Comet. The key is COMET_API_KEY or that of Comet's configuration file."""

    name: ClassVar[str] = "comet_ml"
    needs: ClassVar[str] = "comet-ml"

    project: str = "lrft"
    """Project there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""
    workspace: str | None = None
    """Workspace; default: that of the key."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import CometMLTracker

        self.title = self.run_name or title
        again = {"experiment_key": identity} if identity else {}
        return CometMLTracker(self.project, workspace=self.workspace, **again)

    def identity(self) -> str | None:
        self.tracker.tracker.set_name(self.title)
        return str(self.tracker.tracker.get_key())

    def text(self, name: str, text: str, step: int) -> None:
        self.tracker.tracker.log_text(text, step=step, metadata={"name": name})

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.tracker.log_image(str(path), name=name, step=step)

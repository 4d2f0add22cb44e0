"""Trackio."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class Trackio(Service):
    """Trackio, on this machine (`trackio show`), or on a Space of the hub."""

    name: ClassVar[str] = "trackio"
    needs: ClassVar[str] = "trackio"

    project: str = "lrft"
    """Project there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""
    space_id: str | None = None
    """Space of the hub that keeps the project; default: this machine."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import TrackioTracker

        name = self.run_name or title
        return TrackioTracker(
            self.project, name=name, space_id=self.space_id, resume="allow" if step else "never", embed=False
        )

    def text(self, name: str, text: str, step: int) -> None:
        import trackio

        self.tracker.log({name: trackio.Markdown(text)}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        import trackio

        self.tracker.log({name: trackio.Image(str(path))}, step=step)

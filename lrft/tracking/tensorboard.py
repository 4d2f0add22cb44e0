"""TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service, pixels


@dataclass
class TensorBoard(Service):
    """Event files of TensorBoard, in the run's folder."""

    name: ClassVar[str] = "tensorboard"
    needs: ClassVar[str] = "tensorboard"

    folder_name: str = "tensorboard"
    """Folder of the event files, inside the run's folder."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import TensorBoardTracker

        # What an interrupted run has told of later steps is hidden: it is told again.
        return TensorBoardTracker(self.folder_name, folder, **({"purge_step": step + 1} if step else {}))

    def text(self, name: str, text: str, step: int) -> None:
        self.tracker.log({name: text}, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.log_images({name: pixels(path)[None]}, step=step, dataformats="NHWC")

"""Weights & Biases."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class Wandb(Service):
    """Weights & Biases. WANDB_MODE=offline writes to the disk; the key is WANDB_API_KEY or that of `wandb login`."""

    name: ClassVar[str] = "wandb"
    needs: ClassVar[str] = "wandb"

    project: str = "lrft"
    """Project there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""
    entity: str | None = None
    """User or team; default: that of the key."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import WandBTracker

        again = {"id": identity, "resume": "allow"} if identity else {}
        return WandBTracker(self.project, name=self.run_name or title, entity=self.entity, dir=str(folder), **again)

    def identity(self) -> str | None:
        return str(self.tracker.tracker.id)

    def text(self, name: str, text: str, step: int) -> None:
        self.tracker.log_table(name, columns=["text"], data=[[text]], step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.log_images({name: [str(path)]}, step=step)

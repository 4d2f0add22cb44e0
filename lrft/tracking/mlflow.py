"""MLflow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lrft.tracking.service import Service


@dataclass
class Mlflow(Service):
    """MLflow, at MLFLOW_TRACKING_URI or, without one, in MLflow's own place on this machine."""

    name: ClassVar[str] = "mlflow"
    needs: ClassVar[str] = "mlflow"

    project: str = "lrft"
    """Experiment there."""
    run_name: str | None = None
    """Name of the run; default: the run's folder."""

    def open(self, title: str, folder: Path, step: int, identity: str | None) -> Any:
        from accelerate.tracking import MLflowTracker

        return MLflowTracker(self.project, run_name=self.run_name or title, run_id=identity)

    def identity(self) -> str | None:
        return str(self.tracker.tracker.info.run_id)

    def text(self, name: str, text: str, step: int) -> None:
        import mlflow

        mlflow.log_text(text, f"{name}-step-{step:06d}.md")

    def picture(self, name: str, path: Path, step: int) -> None:
        self.tracker.log_artifact(str(path))

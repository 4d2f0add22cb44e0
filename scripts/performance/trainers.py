"""What the two trainers share: arguments, and a callback that marks the steps."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from performance.job import Job
from performance.recorder import Recorder


class Marks(TrainerCallback):
    """Tells the recorder when a step has ended and what its loss was."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.recorder.step()

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.recorder.loss(logs["loss"])


def arguments(job: Job, rows: int, cuda: bool) -> dict[str, Any]:
    """Epochs of one step each, without saving, evaluating or sending anything; all else as the trainers have it."""
    return {
        "output_dir": job.folder,
        "num_train_epochs": job.steps,
        "per_device_train_batch_size": rows,
        "learning_rate": job.learning_rate,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job.seed,
        "bf16": cuda,
        "use_cpu": not cuda,
    }

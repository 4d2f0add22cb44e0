"""What a run can switch on for a GPU: it trains, and memory and loss are those of a run without it, or less."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from gpu_day.day import Day

LIMIT = 90.0
SWITCHES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "offload": ("training.activation_offload=true",),
    "checkpointing light": ("training.gradient_checkpointing=light",),
    "checkpointing full": ("training.gradient_checkpointing=full",),
    "full and offload": ("training.gradient_checkpointing=full", "training.activation_offload=true"),
    "auto": ("training.micro_batch_size=auto",),
    "deterministic": ("training.deterministic=true",),
    "fp16": ("training.precision=fp16",),
    "compile": ("training.compile=true",),
    "kernels": ("training.kernels=liger",),
}
ON_A_GPU = ("fp16", "kernels")
SLOW = ("compile",)


def run(day: Day) -> None:
    day.part("switches", LIMIT, lambda end: tried(day))


def tried(day: Day) -> dict[str, Any]:
    import runs
    from accelerate.state import AcceleratorState, PartialState

    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="gpu-day-") as name:
        os.environ["LRFT_CACHE"] = f"{name}/cache"
        place = runs.Place.make(Path(name))
        for switch, words in SWITCHES.items():
            if (switch in ON_A_GPU and not day.on_gpu) or (switch in SLOW and day.dry):
                continue
            AcceleratorState._reset_state()
            PartialState._reset_state()
            day.forget()
            try:
                made = place.train("training.max_steps=2", *words, out=switch.replace(" ", "-"))
                losses = [record["loss"] for record in runs.records(made)]
                said[switch] = {"losses": losses, "peak GB": day.peak_gb()}
            except Exception as error:
                day.failed = True
                said[switch] = f"{type(error).__name__}: {str(error)[:300]}"
    return said

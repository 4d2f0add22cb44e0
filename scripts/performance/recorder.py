"""What one contestant measures about itself: time and processor time of every step, and memory above the model's."""

from __future__ import annotations

import ctypes
import gc
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from performance.gpu import matmul_rate

MB = 1024 * 1024


class Recorder:
    """`loaded` once before the first step, `step` after each, `loss` and `saw` whenever they are known."""

    def __init__(self) -> None:
        self.cuda = torch.cuda.is_available()
        self.steps: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.facts: dict[str, Any] = {}
        self._wall = self._cpu = self._held = 0.0

    def loaded(self, tensors: Iterable[Tensor]) -> None:
        """The model with its adapters stands, nothing has been trained. The clock of the first step starts."""
        self.facts["set_up"] = time.monotonic() - float(os.environ.get("BENCH_BEGAN", time.monotonic()))
        for tensor in tensors:  # weights that are mapped from their file are not in memory before they are read
            tensor.detach().sum()
        gc.collect()
        self._held = self._reset_memory()
        self._mark()

    def step(self) -> None:
        """An optimiser step has ended, another may begin."""
        wall, cpu = self._wall, self._cpu
        self._mark()
        self.steps.append({"wall": self._wall - wall, "cpu": self._cpu - cpu})

    def loss(self, value: float) -> None:
        self.losses.append(float(value))

    def saw(self, *, tokens: int, labelled: int, checksum: int) -> None:
        """What was in one step, for the comparison with the others."""
        self.facts |= {"tokens": tokens, "labelled": labelled, "checksum": checksum}

    def result(self) -> dict[str, Any]:
        peak = torch.cuda.max_memory_allocated() if self.cuda else status("VmHWM")
        rate = {"matmul_rate": matmul_rate()} if self.cuda else {}
        memory = {"held_mb": self._held / MB, "peak_mb": (peak - self._held) / MB}
        series = {"steps": self.steps, "losses": self.losses, "threads": torch.get_num_threads()}
        return self.facts | memory | rate | series

    def _mark(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def _reset_memory(self) -> float:
        """What is held now, in bytes; the peak counts from here."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return status("VmRSS")


def status(key: str) -> float:
    """A size in /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * float(line.split()[1])
    raise KeyError(key)

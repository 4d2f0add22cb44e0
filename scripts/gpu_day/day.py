"""A day with a GPU: parts with a time limit each, whose results are on disk as soon as they are known."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LEAST = 5.0
"""seconds with which a part is still begun"""


class Day:
    def __init__(self, out: Path, *, dry: bool, seconds: float) -> None:
        self.out, self.dry = out, dry
        self.began = time.monotonic()
        self.end = self.began + seconds
        self.failed = False
        self.device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        name = torch.cuda.get_device_name() if self.on_gpu else "none"
        self.found: dict[str, Any] = {"gpu": name, "torch": torch.__version__, "dry": dry}

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def part(self, name: str, limit: float, act: Callable[[float], Any]) -> None:
        """Do `act` until a time of time.monotonic() that it is told. One that fails does not take the others along."""
        began = time.monotonic()
        if began + LEAST > self.end:
            self.found[name] = "no time was left"
        else:
            try:
                self.found[name] = act(min(self.end, began + limit))
            except Exception:
                self.failed = True
                self.found[name] = {"failed": traceback.format_exc()[-2000:]}
            if self.on_gpu:
                torch.cuda.empty_cache()
        self.found[f"{name}: seconds"] = round(time.monotonic() - began, 1)
        self.out.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        print(f"{name}: {json.dumps(self.found[name])[:400]}", flush=True)

    def wait(self) -> None:
        """Until the GPU has done what it was asked for."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def peak_gb(self) -> float:
        """Memory since the last `forget`, in GB; 0 without a GPU."""
        return round(torch.cuda.max_memory_allocated() / 1e9, 2) if self.on_gpu else 0.0

    def forget(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()

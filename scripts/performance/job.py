"""What one contestant's process is told, as a JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One contestant in one round."""

    runner: str
    """module of this package with a function run(job, recorder)"""
    model: str
    """folder with config.json, model.safetensors and a tokenizer of words t0, t1, ..."""
    rows: str
    """file written by rows.save"""
    folder: str
    """for whatever the contestant writes"""
    result: str
    """file that the measurements go to"""
    steps: int
    """optimiser steps, the first of which warms up"""
    rank: int = 8
    learning_rate: float = 2e-4
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    """the contestant's own"""

    def write(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        return cls(**json.loads(path.read_text()))

"""Fixtures that several files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
import torch
from accelerate.state import AcceleratorState
from hypothesis import settings

if not torch.cuda.is_available():
    # Other libraries import DeepSpeed where it is installed, which then says on standard output that it found no GPU.
    os.environ["DS_ACCELERATOR"] = "cpu"
# The same examples in each run: a change is judged by what it changes. Others: pytest --hypothesis-profile=default
settings.load_profile("ci")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[runs.Place]:
    """A base, data and a recipe in a temporary folder, with a cache of its own."""
    monkeypatch.setenv("LRFT_CACHE", str(tmp_path / "cache"))
    AcceleratorState._reset_state()  # Accelerate allows one precision per process
    yield runs.Place.make(tmp_path)
    AcceleratorState._reset_state()
